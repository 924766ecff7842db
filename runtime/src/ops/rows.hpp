// Steps that make the rows of their result one by one, or panel by panel.
#pragma once

#include <vector>

#include "codes.hpp"
#include "ops/kind.hpp"

namespace vitquant {

// Where those rows of a value lie that a step reads or makes, in elements: row r of image i starts at
// `offset + i * image_stride + r * stride`.
struct Lines {
    Codes codes;
    size_t width, stride, image_stride, offset = 0;
    size_t between;  // of the step's rows, from one to the next; where an image has a single one, that of the next

    template <typename Byte>
    Byte* at(Byte* base, size_t image, size_t row) const {
        return codes.at(base, offset + image * image_stride + row * stride);
    }
};

// Work on rows of tokens, the same rows of all operands if the operation is row-wise. Where a single token is wanted,
// each image has one row.
class RowStep : public Step {
public:
    RowStep(const Operation& op, const Context& context);

    size_t tasks(size_t images, size_t threads) const override {
        return threads == 1 ? 1 : std::min((images * rows_ + 7) / 8, threads * 4);
    }

    RowExtent extent() const override { return row_wise_ ? RowExtent{rows_, only_row_} : RowExtent{}; }
    void run(const Frame& frame, size_t task) const override {
        run_rows(frame, share(frame.images * rows_, task, tasks(frame.images, frame.threads)));
    }

protected:
    Lines lines(const std::string& name, const Context& context);

    // Rows of all images, numbered through, in as few calls `visit(image, row, count)` as there are seams.
    template <typename Visit>
    void for_rows(Rows rows, Visit visit) const {
        while (rows.first < rows.last) {
            const size_t row = rows.first % rows_;
            const size_t count = seamless_ ? rows.count() : std::min(rows.count(), rows_ - row);
            visit(rows.first / rows_, row, count);
            rows.first += count;
        }
    }

    // The token that a row of an image stands for.
    size_t token_of(size_t row) const { return only_row_ == kAllRows ? row : size_t(only_row_); }

    const uint8_t* input(const Frame& frame, size_t i) const { return frame.values[reads[i]]; }
    uint8_t* output(const Frame& frame) const { return frame.values[writes]; }

    bool row_wise_;
    int64_t only_row_;
    size_t rows_;           // of an image
    bool seamless_ = true;  // rows follow each other at the same distance from image to image, in all operands
    Lines out_;
};

// Makes each row by itself, out of rows of its operands as 32-bit integers.
class LoadingRowStep : public RowStep {
public:
    LoadingRowStep(const Operation& op, const Context& context);

    size_t scratch_bytes() const override {
        return out_.width * sizeof(int64_t) + operands_.size() * widest_ * sizeof(int32_t);
    }

protected:
    // Room for a row of the result.
    template <typename Number>
    static Number* result_row(const Frame& frame) {
        return reinterpret_cast<Number*>(frame.scratch);
    }

    // Codes of a row of an operand; they stay until the next row of it is loaded.
    int32_t* load(const Frame& frame, size_t operand, size_t image, size_t row) const;

    size_t width() const { return out_.width; }

private:
    std::vector<Lines> operands_;
    size_t widest_ = 0;  // of the operands
};

// Makes codes one by one.
class ScalarRowStep : public LoadingRowStep {
public:
    using LoadingRowStep::LoadingRowStep;

    void run_rows(const Frame& frame, Rows rows) const final;

protected:
    // The codes of a row, to be clamped.
    virtual void make_row(const Frame& frame, size_t image, size_t row, int64_t* codes) const = 0;
};

// Makes rows of numbers in 32 bits, of magnitudes up to `limit`, which are requantized by the operation's constants.
class RequantizedRowStep : public LoadingRowStep {
public:
    RequantizedRowStep(const Operation& op, const Context& context, int64_t limit);

    void run_rows(const Frame& frame, Rows rows) const final;

protected:
    virtual void make_row(const Frame& frame, size_t image, size_t row, int32_t* numbers) const = 0;

private:
    const kernels::Kernels& kernels_;
    kernels::Owned<kernels::RequantizePlan> plan_;
};

}  // namespace vitquant
