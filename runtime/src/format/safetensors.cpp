#include "format/safetensors.hpp"

#include <algorithm>
#include <vector>

#include "error.hpp"
#include "format/json.hpp"

namespace vitquant {
namespace {

constexpr size_t kMaxHeader = size_t{1} << 23;
constexpr JsonLimits kLimits = {4, 19, kMaxHeader / 4};  // a tensor takes 50 bytes or more, and has 8 values or so
constexpr int64_t kMaxElements = int64_t{1} << 32;
constexpr size_t kMaxDims = 8;

DType type_of(const std::string& code, const std::string& where) {
    static const std::map<std::string, DType> types = {{"I8", DType::int8},   {"U8", DType::uint8},
                                                       {"I16", DType::int16}, {"I32", DType::int32},
                                                       {"I64", DType::int64}, {"F32", DType::float32}};
    const auto found = types.find(code);
    if (found == types.end()) refuse(where, "a tensor of a type that no program has", code);
    return found->second;
}

struct Placed {
    int64_t begin, end;
};

// Sizes and offsets are written without a sign, which `-0` has.
bool is_size(const Json& told) { return told.type == Json::Type::integer && told.source.front() != '-'; }

Tensor describe_tensor(const Json& told, const std::string& where, Placed& place) {
    told.require_keys({"dtype", "shape", "data_offsets"}, where);
    Tensor tensor;
    tensor.type = type_of(told.string("dtype", where), where);
    tensor.count = 1;
    const Json& shape = told.array("shape", where);
    if (shape.items.size() > kMaxDims) refuse(where, "a tensor of too many dimensions");
    for (const Json& n : shape.items) {
        if (!is_size(n) || n.integer > kMaxElements) refuse(where, "a tensor with no proper shape");
        tensor.shape.push_back(n.integer);
        tensor.count *= n.integer;
        if (tensor.count > kMaxElements) refuse(where, "a tensor that is too large");
    }
    const Json& offsets = told.array("data_offsets", where);
    if (offsets.items.size() != 2 || !is_size(offsets.items[0]) || !is_size(offsets.items[1]))
        refuse(where, "a tensor without offsets");
    place = {offsets.items[0].integer, offsets.items[1].integer};
    const int64_t bytes = tensor.count * int64_t(size_of(tensor.type));
    if (place.end < place.begin || place.end - place.begin != bytes)
        refuse(where, "a tensor's offsets do not fit its shape");
    return tensor;
}

void check_metadata(const Json& told, const std::string& where) {
    if (told.type != Json::Type::object) refuse(where, "metadata that are not an object");
    for (const auto& [key, value] : told.members)
        if (value.type != Json::Type::string) refuse(where, "metadata that are not strings", key);
}

}  // namespace

std::map<std::string, Tensor> read_safetensors(std::string_view file, const std::string& where) {
    if (file.size() < 8) refuse(where, "too short for a tensor file");
    uint64_t length = 0;
    for (int i = 0; i < 8; ++i) length |= uint64_t(static_cast<unsigned char>(file[size_t(i)])) << (8 * i);
    if (length > kMaxHeader || length > file.size() - 8) refuse(where, "a header longer than the file or than allowed");
    std::string_view header = file.substr(8, size_t(length));
    if (header.empty() || header[0] != '{') refuse(where, "not a tensor file");
    const std::string_view bytes = file.substr(8 + size_t(length));
    const Json told = parse_json(header, kLimits, where);

    std::map<std::string, Tensor> tensors;
    std::vector<Placed> places;
    for (const auto& [name, value] : told.members) {
        if (name == "__metadata__") {
            check_metadata(value, where);
            continue;
        }
        Placed place{};
        Tensor tensor = describe_tensor(value, where, place);
        if (place.end > int64_t(bytes.size())) refuse(where, "a tensor lies beyond the end of the file", name);
        tensor.data = reinterpret_cast<const uint8_t*>(bytes.data()) + place.begin;
        tensors.emplace(name, std::move(tensor));
        places.push_back(place);
    }
    std::sort(places.begin(), places.end(),
              [](const Placed& a, const Placed& b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
    int64_t end = 0;
    for (const Placed& place : places) {
        if (place.begin != end) refuse(where, "tensors that overlap, or leave a gap");
        end = place.end;
    }
    if (end != int64_t(bytes.size())) refuse(where, "bytes that belong to no tensor");
    return tensors;
}

}  // namespace vitquant
