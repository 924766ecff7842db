// From a program to what a run does: steps in phases, and where in memory each value lies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "interrupt.hpp"
#include "kernels/kernels.hpp"
#include "program.hpp"
#include "step.hpp"

namespace vitquant {

struct Placement {
    size_t offset = 0;  // bytes from the start, for one image; times the images for a batch
    size_t bytes = 0;   // of one image, a multiple of 64; 0 for the image itself and for what is never written
};

// Steps that are executed together: one, or several that follow each other panel by panel of rows.
class Unit {
public:
    explicit Unit(const Step* step) : steps_{step} {}

    void append(const Step* step) { steps_.push_back(step); }
    const std::vector<const Step*>& steps() const { return steps_; }
    size_t tasks(size_t images, size_t threads) const;
    void run(const Frame& frame, size_t task) const;

private:
    std::vector<const Step*> steps_;
};

struct Plan {
    std::vector<std::unique_ptr<Step>> steps;
    std::vector<std::vector<Unit>> phases;  // units of a phase do not wait for each other
    std::vector<Placement> values;          // by number; the image is value 0, what operation i makes value i + 1
    std::vector<int64_t> only_row;          // by number; the only row that is computed, or kAllRows
    size_t arena_bytes = 0;                 // of one image
    size_t scratch_bytes = 0;               // of one thread
    std::vector<int> outputs;               // numbers of the values that are given
};

// Whether each operation is executed by itself, as the format defines it, or together with others where that is
// quicker.
enum class Fusion { none, all };

// What makes the values in `outputs`. Throws Interrupted.
Plan make_plan(const Program& program, const std::vector<std::string>& outputs, const kernels::Kernels& kernels,
               Fusion fusion, Interrupt* interrupt);

}  // namespace vitquant
