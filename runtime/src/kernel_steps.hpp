// Steps that the kernels of an instruction set execute.
#pragma once

#include <memory>

#include "kernels/kernels.hpp"
#include "nodes.hpp"
#include "plain_steps.hpp"
#include "step.hpp"

namespace vitquant {

// What the makers of steps need to know of the whole.
struct Surroundings {
    const kernels::Kernels& kernels;
    const Grouping& grouping;
    const ValueOf& value;
};

// The step of a node that is not plain, without `reads` and `writes` filled in.
std::unique_ptr<Step> make_kernel_step(const Node& node, const Surroundings& around);

}  // namespace vitquant
