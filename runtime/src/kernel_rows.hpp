// What steps by kernels have in common: constants as kernels take them, and where rows lie.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "codes.hpp"
#include "kernel_steps.hpp"

namespace vitquant {

kernels::Type kernel_type(DType type);
kernels::Grid kernel_grid(const Value& value);  // points into the value

// Constants in the types and at the addresses that kernels want, for as long as a plan is being made.
class Constants {
public:
    explicit Constants(const Operation& op) : op_(op) {}

    template <typename T>
    const T* get(const std::string& key) {
        const Tensor& tensor = op_.constant(key);
        if constexpr (sizeof(T) == 1) return reinterpret_cast<const T*>(tensor.data);
        // A file need not align what is wider than a byte.
        kept_.emplace_back((std::size_t(tensor.count) * sizeof(T) + 7) / 8);
        std::memcpy(kept_.back().data(), tensor.data, std::size_t(tensor.count) * sizeof(T));
        return reinterpret_cast<const T*>(kept_.back().data());
    }

    const void* any(const std::string& key);
    kernels::Rescale rescale(const std::string& suffix = "");
    kernels::LookupTables tables();

private:
    const Operation& op_;
    std::deque<std::vector<std::int64_t>> kept_;
};

// Where those rows of a value lie that a step reads or makes: row r of image i starts at
// `offset + i * image_stride + r * stride`, all in elements.
struct Lines {
    std::size_t element_bytes = 1, stride = 0, image_stride = 0, offset = 0;

    template <typename Byte>
    Byte* at(Byte* base, std::size_t image, std::size_t row) const {
        return base + (offset + image * image_stride + row * stride) * element_bytes;
    }
};

// Work on rows of tokens, the same rows of all operands. Where a single token is wanted, each image has one row.
class RowKernelStep : public Step {
public:
    RowKernelStep(const Node& node, const Surroundings& around);

    std::size_t tasks(std::size_t images, std::size_t threads) const override {
        return threads == 1 ? 1 : std::min((images * rows_ + 7) / 8, threads * 4);
    }

    RowExtent extent() const override { return {rows_, only_row_}; }
    void run(const Frame& frame, std::size_t task) const override {
        run_rows(frame, share(frame.images * rows_, task, tasks(frame.images, frame.threads)));
    }

protected:
    Lines lines(const std::string& name, const Surroundings& around);

    // Rows of all images, numbered through, in as few calls `visit(image, row, count)` as there are seams.
    template <typename Visit>
    void for_rows(Rows rows, Visit visit) const {
        while (rows.first < rows.last) {
            const std::size_t row = rows.first % rows_;
            const std::size_t count = seamless_ ? rows.count() : std::min(rows.count(), rows_ - row);
            visit(rows.first / rows_, row, count);
            rows.first += count;
        }
    }

    const std::uint8_t* input(const Frame& frame, std::size_t i) const { return frame.values[reads[i]]; }
    std::uint8_t* output(const Frame& frame) const { return frame.values[writes]; }

    const kernels::Kernels& kernels_;
    std::int64_t only_row_;
    std::size_t rows_;      // of an image
    bool seamless_ = true;  // rows follow each other at the same distance from image to image, in all operands
    Lines out_;
};

std::unique_ptr<Step> make_linear_step(const Node& node, const Surroundings& around);

}  // namespace vitquant
