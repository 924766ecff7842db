#include "vitquant_runtime.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine.hpp"

struct vitquant_program {
    explicit vitquant_program(std::unique_ptr<vitquant::Engine> loaded) : engine(std::move(loaded)) {
        for (const std::string& name : engine->output_names()) output_names.push_back(name.c_str());
        output_names.push_back(nullptr);
    }

    std::unique_ptr<vitquant::Engine> engine;
    std::vector<const char*> output_names;
};

namespace {

// The program that `load` gives; null, and the reason in `error`, where it throws.
template <typename Load>
vitquant_program* loaded(const Load& load, char* error, size_t error_size) {
    try {
        return new vitquant_program(load());
    } catch (const std::exception& caught) {
        if (error && error_size) {
            const size_t length = std::min(error_size - 1, std::strlen(caught.what()));
            std::memcpy(error, caught.what(), length);
            error[length] = '\0';
        }
        return nullptr;
    }
}

std::vector<std::string> names(const char* const* outputs, size_t count) {
    return std::vector<std::string>(outputs, outputs + count);
}

// 0, or 1 where `run` throws.
template <typename Run>
int status(const Run& run) {
    try {
        run();
        return 0;
    } catch (const std::exception&) {
        return 1;
    }
}

float scale_of(const vitquant::Engine::Output& output, size_t channel) {
    return output.scale[output.scale.size() > 1 ? channel : 0];
}

}  // namespace

extern "C" {

vitquant_program* vitquant_load(const char* path, size_t threads, char* error, size_t error_size) {
    return vitquant_load_outputs(path, nullptr, 0, threads, error, error_size);
}

vitquant_program* vitquant_load_bytes(const void* manifest, size_t manifest_size, const void* tensors,
                                      size_t tensors_size, size_t threads, char* error, size_t error_size) {
    return vitquant_load_bytes_outputs(manifest, manifest_size, tensors, tensors_size, nullptr, 0, threads, error,
                                       error_size);
}

vitquant_program* vitquant_load_outputs(const char* path, const char* const* outputs, size_t output_count,
                                        size_t threads, char* error, size_t error_size) {
    return loaded([&] { return vitquant::load_engine(path, names(outputs, output_count), threads); }, error,
                  error_size);
}

vitquant_program* vitquant_load_bytes_outputs(const void* manifest, size_t manifest_size, const void* tensors,
                                              size_t tensors_size, const char* const* outputs, size_t output_count,
                                              size_t threads, char* error, size_t error_size) {
    const std::string_view first(static_cast<const char*>(manifest), manifest_size);
    const std::string_view second(static_cast<const char*>(tensors), tensors_size);
    return loaded([&] { return vitquant::load_engine(first, second, names(outputs, output_count), threads); }, error,
                  error_size);
}

void vitquant_free(vitquant_program* program) { delete program; }

void vitquant_image_shape(const vitquant_program* program, size_t shape[3]) {
    for (size_t i = 0; i < 3; ++i) shape[i] = size_t(program->engine->image_shape()[i]);
}

size_t vitquant_outputs(const vitquant_program* program) { return program->engine->outputs().front().elements(); }

float vitquant_scale(const vitquant_program* program, size_t output) {
    const vitquant::Engine::Output& first = program->engine->outputs().front();
    return scale_of(first, output % first.zero.size());
}

const char* const* vitquant_output_names(const vitquant_program* program) { return program->output_names.data(); }

size_t vitquant_chosen_outputs(const vitquant_program* program) { return program->engine->outputs().size(); }

const char* vitquant_output_name(const vitquant_program* program, size_t number) {
    return program->engine->outputs()[number].name.c_str();
}

size_t vitquant_output_shape(const vitquant_program* program, size_t number, size_t shape[2]) {
    const std::vector<int64_t>& told = program->engine->outputs()[number].shape;
    for (size_t i = 0; i < told.size(); ++i) shape[i] = size_t(told[i]);
    return told.size();
}

float vitquant_output_scale(const vitquant_program* program, size_t number, size_t channel) {
    return scale_of(program->engine->outputs()[number], channel);
}

const char* vitquant_metadata(const vitquant_program* program) { return program->engine->metadata().c_str(); }

const char* vitquant_isa(const vitquant_program* program) { return program->engine->isa().c_str(); }

size_t vitquant_threads(const vitquant_program* program) { return program->engine->threads(); }

int vitquant_run(const vitquant_program* program, const uint8_t* images, size_t count, int32_t* logits) {
    return status([&] { program->engine->run(images, count, logits); });
}

int vitquant_run_outputs(const vitquant_program* program, const uint8_t* images, size_t count,
                         int32_t* const* results) {
    return status([&] { program->engine->run(images, count, results, program->engine->outputs().size()); });
}

}  // extern "C"
