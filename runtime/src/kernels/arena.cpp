#include <cstring>
#include <new>

#include "plans.hpp"

namespace vitquant::kernels {

struct Arena::Block {
    Block* before;
};

void* Arena::block(size_t bytes) {
    constexpr size_t header = 64;
    void* memory = ::operator new(header + bytes, std::align_val_t{64});
    auto* block = static_cast<Block*>(memory);
    block->before = last_;
    last_ = block;
    void* data = static_cast<char*>(memory) + header;
    std::memset(data, 0, bytes);
    return data;
}

Arena::~Arena() {
    while (last_ != nullptr) {
        Block* before = last_->before;
        ::operator delete(static_cast<void*>(last_), std::align_val_t{64});
        last_ = before;
    }
}

void Deleter::operator()(LinearPlan* plan) const { delete plan; }
void Deleter::operator()(LayerNormPlan* plan) const { delete plan; }
void Deleter::operator()(RequantizePlan* plan) const { delete plan; }
void Deleter::operator()(AttentionPlan* plan) const { delete plan; }

}  // namespace vitquant::kernels
