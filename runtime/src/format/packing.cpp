#include "format/packing.hpp"

#include <algorithm>

#include "error.hpp"
#include "ops/check.hpp"

namespace vitquant {
namespace {

constexpr int64_t kLeastBits = 2, kMostBits = 7;
constexpr int64_t kMultiplierBits = 4;  // of a multiplier less 1

struct Packing {
    int64_t bits, columns, group;  // a group of 0: no multipliers

    int64_t groups() const { return group ? (columns + group - 1) / group : 0; }
};

Packing read_packing(const Json& told, const std::string& name) {
    told.require_keys({"bits", "columns", "group"}, name);
    const Packing packing{told.whole("bits", name), told.whole("columns", name), told.whole("group", name)};
    if (packing.bits < kLeastBits || packing.bits > kMostBits || packing.columns < 1 ||
        packing.columns > kMaxElements || packing.group < 0 || packing.group > packing.columns)
        refuse(name, "a tensor cannot be packed like this", std::string(told.source),
               "bits 2 to 7, group 0 to columns");
    return packing;
}

Tensor take(std::map<std::string, Tensor>& tensors, const std::string& name) {
    const auto found = tensors.find(name);
    if (found == tensors.end()) refuse(name, "the tensor file does not hold it");
    Tensor tensor = std::move(found->second);
    tensors.erase(found);
    return tensor;
}

// Rows of bytes, in each of which lie `columns` elements of `bits` bits, and after them nothing but zeros.
class PackedRows {
public:
    PackedRows(const Tensor& tensor, int64_t bits, int64_t columns, const std::string& name)
        : data_(tensor.data), bits_(bits), columns_(columns), width_((columns * bits + 7) / 8) {
        if (tensor.type != DType::uint8 || tensor.shape.size() != 2 || tensor.shape[1] != width_)
            refuse(name, "not packed rows", tensor.describe(), "uint8 [n, " + std::to_string(width_) + "]");
        rows_ = tensor.shape[0];
        if (rows_ > kMaxElements / columns) refuse(name, "not packed rows", tensor.describe(), "at most 2^28 elements");
        const int64_t beyond = columns * bits % 8;
        for (int64_t row = 0; beyond && row < rows_; ++row)
            if (data_[row * width_ + width_ - 1] >> beyond)
                refuse(name, "packed rows are damaged: bits beyond the end of a row are not 0");
    }

    int64_t rows() const { return rows_; }

    // The elements of a row in order, each as it is without its sign.
    template <typename Take>
    void row(int64_t row, Take take) const {
        const uint8_t* from = data_ + row * width_;
        uint32_t held = 0;
        int64_t bits = 0;
        for (int64_t column = 0; column < columns_; ++column) {
            if (bits < bits_) {
                held |= uint32_t{*from++} << bits;
                bits += 8;
            }
            take(column, static_cast<int>(held & ((1u << bits_) - 1)));
            held >>= bits_;
            bits -= bits_;
        }
    }

private:
    const uint8_t* data_;
    int64_t bits_, columns_, width_, rows_;
};

std::unique_ptr<const std::vector<int8_t>> unpack(const PackedRows& packed, const PackedRows* groups,
                                                  const Packing& packing, const std::string& name,
                                                  Interrupt* interrupt) {
    std::vector<int8_t> out(size_t(packed.rows() * packing.columns));
    std::vector<int> multipliers(size_t(packing.groups()));
    const int sign = 1 << (packing.bits - 1);
    int low = 0, high = 0;
    for (int64_t row = 0; row < packed.rows(); ++row) {
        if (row % 256 == 0) go_on(interrupt);
        int8_t* to = out.data() + row * packing.columns;
        if (groups) groups->row(row, [&](int64_t group, int less_one) { multipliers[size_t(group)] = less_one + 1; });
        packed.row(row, [&](int64_t column, int element) {
            const int code = (element ^ sign) - sign;
            const int product = groups ? code * multipliers[size_t(column / packing.group)] : code;
            low = std::min(low, product), high = std::max(high, product);
            to[column] = static_cast<int8_t>(product);
        });
    }
    if (low < -128 || high > 127)
        refuse(name, "packed rows are damaged: products do not fit into 8 bits", span(low, high));
    return std::make_unique<const std::vector<int8_t>>(std::move(out));
}

}  // namespace

void unpack_tensors(const Json& told, std::map<std::string, Tensor>& tensors, UnpackedMemory& memory,
                    Interrupt* interrupt) {
    for (const auto& [name, how] : told.members) {
        if (how.type != Json::Type::object) refuse(name, "a packed tensor without description");
        const Packing packing = read_packing(how, name);
        const PackedRows rows(take(tensors, name), packing.bits, packing.columns, name);
        if (packing.group) {
            const std::string beside = name + "/multipliers";
            const PackedRows groups(take(tensors, beside), kMultiplierBits, packing.groups(), beside);
            if (groups.rows() != rows.rows()) refuse(beside, "multipliers of another number of rows");
            memory.push_back(unpack(rows, &groups, packing, name, interrupt));
        } else {
            memory.push_back(unpack(rows, nullptr, packing, name, interrupt));
        }
        const std::vector<int8_t>& made = *memory.back();
        Tensor tensor{DType::int8, {rows.rows(), packing.columns}, nullptr, int64_t(made.size())};
        tensor.data = reinterpret_cast<const uint8_t*>(made.data());
        tensors.emplace(name, std::move(tensor));
    }
}

}  // namespace vitquant
