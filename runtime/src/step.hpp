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

class Step {
public:
    virtual ~Step() = default;

    // Number of tasks for so many images on so many threads. Whatever the number, the results are the same.
    virtual std::size_t tasks(std::size_t images, std::size_t threads) const = 0;
    virtual void run(const Frame& frame, std::size_t task) const = 0;
    virtual std::size_t scratch_bytes() const { return 0; }

    std::vector<int> reads;  // numbers of values
    int writes = -1;
    std::string label;  // the operations, such as `linear+add`
};

struct Rows {
    std::size_t first, last;
    std::size_t count() const { return last - first; }
};

// The part of `total` that falls to a task, in multiples of `grain` (but for the last).
inline Rows share(std::size_t total, std::size_t task, std::size_t tasks, std::size_t grain = 1) {
    const std::size_t grains = (total + grain - 1) / grain;
    const std::size_t first = grains * task / tasks * grain, last = grains * (task + 1) / tasks * grain;
    return {std::min(first, total), std::min(last, total)};
}

}  // namespace vitquant
