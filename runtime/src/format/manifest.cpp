#include "format/manifest.hpp"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "error.hpp"
#include "format/json.hpp"
#include "format/packing.hpp"
#include "format/safetensors.hpp"
#include "format/sha256.hpp"
#include "format/validate.hpp"
#include "format/versions.hpp"
#include "ops/kind.hpp"

namespace vitquant {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFormat = "vitquant-program";
constexpr const char* kManifest = "program.json";
constexpr const char* kTensors = "program.safetensors";
constexpr uintmax_t kMaxManifest = 1u << 22;
constexpr JsonLimits kLimits = {8, 20, kMaxManifest};
constexpr size_t kDigest = 64;
constexpr size_t kPiece = size_t{1} << 24;  // of a file: what is read or digested in milliseconds

void check_size(uintmax_t size, uintmax_t limit, const std::string& where) {
    if (size > limit)
        refuse(where, "the file is too large", std::to_string(size) + " bytes", "at most " + std::to_string(limit));
}

// Looks before it opens: to open a pipe would wait for somebody to write.
std::string read_file(const fs::path& path, uintmax_t limit, Interrupt* interrupt) {
    const std::string where = path.string();
    std::error_code failed;
    const fs::file_status status = fs::status(path, failed);
    if (status.type() == fs::file_type::not_found) refuse(where, "there is no such file");
    if (failed) refuse(where, "cannot read the program: " + failed.message());
    if (status.type() != fs::file_type::regular) refuse(where, "not a file");
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file) refuse(where, "cannot read the program: " + std::string(std::strerror(errno)));
    const auto size = static_cast<uintmax_t>(file.tellg());
    check_size(size, limit, where);
    std::string data;
    data.reserve(size_t(size));
    file.seekg(0);
    for (size_t at = 0; at < size; at = data.size()) {
        go_on(interrupt);
        data.resize(std::min(size_t(size), at + kPiece));
        if (!file.read(&data[at], std::streamsize(data.size() - at))) refuse(where, "cannot read all of the program");
    }
    return data;
}

std::string digest_of(std::string_view data, Interrupt* interrupt) {
    Sha256 hash;
    for (size_t at = 0; at < data.size(); at += kPiece) {
        go_on(interrupt);
        const std::string_view piece = data.substr(at, kPiece);
        hash.update(piece.data(), piece.size());
    }
    return hash.hex();
}

// The digest is that of the manifest's bytes in which zeros stand for the first occurrence of the digest itself.
void check_digest(std::string_view manifest, const std::string& given, const std::string& where) {
    const size_t at = given.size() == kDigest ? manifest.find(given) : std::string_view::npos;
    std::string told;
    if (at != std::string_view::npos) {
        Sha256 hash;
        hash.update(manifest.data(), at);
        hash.update(std::string(kDigest, '0').data(), kDigest);
        hash.update(manifest.data() + at + kDigest, manifest.size() - at - kDigest);
        told = hash.hex();
    }
    if (told != given) refuse(where, "the program was changed after it was written", "", "another sha256");
}

Json read_manifest(std::string_view manifest, const std::string& where, Digests digests) {
    check_size(manifest.size(), kMaxManifest, where);
    Json told = parse_json(manifest, kLimits, where);
    const Json* format = told.find("format");
    if (!format || format->type != Json::Type::string || format->text != kFormat)
        refuse(where, "not an integer program", "", std::string("\"format\": \"") + kFormat + "\"");
    const Json* version = told.find("format_version");
    if (!version || version->type != Json::Type::integer || version->integer < kOldestVersion ||
        version->integer > kNewestVersion)
        refuse(where, "the program was written in another version of the format",
               version ? std::string(version->source) : "none",
               "version " + std::to_string(kOldestVersion) + " to " + std::to_string(kNewestVersion) +
                   "; install the vitquant-runtime that goes with the vitquant that wrote it, or compile it again");
    told.require_keys({"format", "format_version", "sha256", "program"}, where);
    const std::string& digest = told.string("sha256", where);
    if (digests == Digests::checked) check_digest(manifest, digest, where);
    told.object("program", where);
    return told;
}

using Tensors = std::map<std::string, Tensor>;

Tensor take(Tensors& left, const std::string& name) {
    const auto found = left.find(name);
    if (found == left.end()) refuse(name, "the tensor file does not hold it");
    Tensor tensor = std::move(found->second);
    left.erase(found);
    return tensor;
}

Value read_value(const Json& told, Tensors& left) {
    told.require_keys({"name", "shape", "low", "high"}, "value");
    Value value;
    value.name = told.string("name", "value");
    check_name(value.name);
    const Json& shape = told.array("shape", value.name);
    if (shape.items.size() < 2 || shape.items.size() > 3)
        refuse(value.name, "not a shape", std::to_string(shape.items.size()) + " sizes");
    for (const Json& n : shape.items) {
        if (n.type != Json::Type::integer) refuse(value.name, "not a shape");
        value.shape.push_back(n.integer);
    }
    value.low = told.whole("low", value.name);
    value.high = told.whole("high", value.name);
    const Tensor scale = take(left, value.name + "/scale"), zero = take(left, value.name + "/zero_point");
    check_grid(value, scale, zero);
    for (int64_t i = 0; i < scale.count; ++i) value.scale.push_back(scale.raw<float>(i));
    value.zero_point = zero.to<int32_t>();
    check_value(value);
    return value;
}

const OperationKind& kind_of(const Json& told, int64_t version) {
    const Json* name = told.type == Json::Type::object ? told.find("op") : nullptr;
    if (name && name->type == Json::Type::string && has_kind(version, name->text))
        if (const OperationKind* kind = find_kind(name->text)) return *kind;
    refuse("operation", "unknown kind", name ? name->text : "");
}

Operation read_operation(const Json& told, int64_t version, Tensors& left) {
    const OperationKind& kind = kind_of(told, version);
    const std::string kind_name(kind.name);
    std::vector<std::string_view> keys = {"op", "out"};
    for (const auto* more : {&kind.reads, &kind.numbers, &kind.flags})
        for (std::string_view key : *more)
            if (!implied_number(version, key)) keys.push_back(key);
    told.require_keys(keys, kind_name);
    Operation op;
    op.kind = &kind;
    op.out = read_value(told.object("out", kind_name), left);
    for (std::string_view key : kind.reads) {
        op.reads.push_back(told.string(key, op.out.name));
        check_name(op.reads.back());
    }
    for (std::string_view key : kind.numbers) {
        const auto implied = implied_number(version, key);
        op.numbers.emplace(key, implied ? *implied : told.whole(key, op.out.name));
    }
    for (std::string_view key : kind.flags) op.numbers.emplace(key, told.flag(key, op.out.name));
    for (const Constant& constant : kind.constants) {
        const auto implied = implied_constant(version, kind.name, constant.name);
        op.constants.emplace(constant.name,
                             implied ? *implied : take(left, op.out.name + "/" + std::string(constant.name)));
    }
    return op;
}

// Version 1 has one output, and no name for it.
std::vector<Output> read_outputs(const Json& body, int64_t version, const std::string& where) {
    if (version == 1) return {{"logits", body.string("output", where), true}};
    std::vector<Output> outputs;
    for (const Json& told : body.array("outputs", where).items) {
        told.require_keys({"name", "value", "pooled"}, "output");
        const std::string& name = told.string("name", "output");
        check_name(name);
        outputs.push_back({name, told.string("value", name), told.flag("pooled", name)});
    }
    return outputs;
}

}  // namespace

ProgramFiles read_program_files(const std::string& given, Interrupt* interrupt) {
    if (given.empty() || given.find('\0') != std::string::npos)
        refuse("path", "not the path of a program", given, "a folder, or the path of its " + std::string(kManifest));
    fs::path path = fs::u8path(given);
    std::error_code ignored;
    if (fs::is_directory(path, ignored)) path /= kManifest;
    ProgramFiles files;
    files.where = path.string();
    files.manifest = read_file(path, kMaxManifest, interrupt);
    const Json told = read_manifest(files.manifest, files.where, Digests::checked);
    const int64_t bytes =
        told.object("program", files.where).object("tensors", files.where).whole("bytes", files.where);
    if (bytes < 0) refuse(files.where, "a tensor file of a negative size");
    files.tensors = read_file(path.parent_path() / kTensors, uintmax_t(bytes), interrupt);
    return files;
}

Program decode_program(std::string_view manifest, std::string_view tensors, const std::string& where, Digests digests,
                       Interrupt* interrupt) {
    const Json told = read_manifest(manifest, where, digests);
    const int64_t version = told.whole("format_version", where);
    const Json& body = told.object("program", where);
    body.require_keys({"image", "operations", version == 1 ? "output" : "outputs", "metadata", "tensors"}, where);
    const Json& file = body.object("tensors", where);
    std::vector<std::string_view> keys = {"file", "sha256", "bytes"};
    if (version >= kPackedVersion) keys.push_back("packed");
    file.require_keys(keys, where);
    bool same = file.string("file", where) == kTensors;
    const int64_t bytes = file.whole("bytes", where);
    const std::string& digest = file.string("sha256", where);
    if (digests == Digests::checked)
        same = same && bytes == int64_t(tensors.size()) && digest == digest_of(tensors, interrupt);
    if (!same)
        refuse(where, "the tensor file is not the one that the program was written with",
               std::to_string(tensors.size()) + " bytes");
    Tensors left = read_safetensors(tensors, where);

    Program program;
    if (version >= kPackedVersion) unpack_tensors(file.object("packed", where), left, program.unpacked, interrupt);
    program.image = read_value(body.object("image", where), left);
    for (const Json& operation : body.array("operations", where).items) {
        go_on(interrupt);
        program.operations.push_back(read_operation(operation, version, left));
    }
    program.outputs = read_outputs(body, version, where);
    program.metadata = std::string(body.object("metadata", where).source);
    if (!left.empty()) refuse(where, "the tensor file holds what no operation uses", left.begin()->first);
    validate(program, interrupt);
    return program;
}

}  // namespace vitquant
