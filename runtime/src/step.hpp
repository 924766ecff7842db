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
    std::size_t images = 0, threads = 1;
    std::uint8_t* const* values = nullptr;  // by the value's number; [images, elements of the value], row-major
    std::uint8_t* scratch = nullptr;        // of this worker, aligned to 64
};

struct Rows {
    std::size_t first, last;
    std::size_t count() const { return last - first; }
};

// Steps whose rows depend on the same rows of what they read can follow each other panel by panel: those of the same
// extent, in which a row has the same meaning.
struct RowExtent {
    std::size_t rows = 0;        // of an image; 0 for steps that do not work row by row
    std::int64_t only_row = -1;  // the token that they stand for, if it is a single one

    bool operator==(const RowExtent& other) const { return rows == other.rows && only_row == other.only_row; }
};

class Step {
public:
    virtual ~Step() = default;

    // Number of tasks for so many images on so many threads. Whatever the number, the results are the same.
    virtual std::size_t tasks(std::size_t images, std::size_t threads) const = 0;
    virtual void run(const Frame& frame, std::size_t task) const = 0;
    virtual std::size_t scratch_bytes() const { return 0; }

    virtual RowExtent extent() const { return {}; }
    virtual void run_rows(const Frame&, Rows) const {}  // of all images, numbered through

    std::vector<int> reads;  // numbers of values
    int writes = -1;
    std::string label;  // the operations, such as `linear+add`
    std::string code = "scalar";  // which code executes them: this, or the name of an instruction set
};

// The part of `total` that falls to a task, in multiples of `grain` (but for the last).
inline Rows share(std::size_t total, std::size_t task, std::size_t tasks, std::size_t grain = 1) {
    const std::size_t grains = (total + grain - 1) / grain;
    const std::size_t first = grains * task / tasks * grain, last = grains * (task + 1) / tasks * grain;
    return {std::min(first, total), std::min(last, total)};
}

}  // namespace vitquant
