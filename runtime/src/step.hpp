// A step of the plan: one operation, or several fused, as tasks that may run at the same time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tensor.hpp"

namespace vitquant {

// Where the values of a run lie, and how many images there are.
struct Frame {
    size_t images = 0, threads = 1;
    uint8_t* const* values = nullptr;  // by the value's number; [images, elements of the value], row-major
    uint8_t* scratch = nullptr;        // of this worker, aligned to 64
};

struct Rows {
    size_t first, last;
    size_t count() const { return last - first; }
};

// Steps whose rows depend on the same rows of what they read can follow each other panel by panel: those of the same
// extent, in which a row has the same meaning.
struct RowExtent {
    size_t rows = 0;        // of an image; 0 for steps that do not work row by row
    int64_t only_row = -1;  // the token that they stand for, if it is a single one

    bool operator==(const RowExtent& other) const { return rows == other.rows && only_row == other.only_row; }
};

class Step {
public:
    virtual ~Step() = default;

    // Number of tasks for so many images on so many threads. Whatever the number, the results are the same.
    virtual size_t tasks(size_t images, size_t threads) const = 0;
    virtual void run(const Frame& frame, size_t task) const = 0;
    virtual size_t scratch_bytes() const { return 0; }

    virtual RowExtent extent() const { return {}; }
    virtual void run_rows(const Frame&, Rows) const {}  // of all images, numbered through

    std::vector<int> reads;  // numbers of values
    int writes = -1;
    std::string label;            // the operations, such as `linear+add`
    std::string code = "scalar";  // which code executes them: this, or the name of an instruction set
};

// The part of `total` that falls to a task, in multiples of `grain` (but for the last).
inline Rows share(size_t total, size_t task, size_t tasks, size_t grain = 1) {
    const size_t grains = (total + grain - 1) / grain;
    const size_t first = grains * task / tasks * grain, last = grains * (task + 1) / tasks * grain;
    return {std::min(first, total), std::min(last, total)};
}

}  // namespace vitquant
