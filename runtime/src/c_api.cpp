#include "vitquant_runtime.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <string_view>

#include "engine.hpp"

struct vitquant_program {
    std::unique_ptr<vitquant::Engine> engine;
};

namespace {

// The program that `load` gives; null, and the reason in `error`, where it throws.
template <typename Load>
vitquant_program* loaded(const Load& load, char* error, size_t error_size) {
    try {
        return new vitquant_program{load()};
    } catch (const std::exception& caught) {
        if (error && error_size) {
            const size_t length = std::min(error_size - 1, std::strlen(caught.what()));
            std::memcpy(error, caught.what(), length);
            error[length] = '\0';
        }
        return nullptr;
    }
}

}  // namespace

extern "C" {

vitquant_program* vitquant_load(const char* path, size_t threads, char* error, size_t error_size) {
    return loaded([&] { return vitquant::load_engine(path, threads); }, error, error_size);
}

vitquant_program* vitquant_load_bytes(const void* manifest, size_t manifest_size, const void* tensors,
                                      size_t tensors_size, size_t threads, char* error, size_t error_size) {
    const std::string_view first(static_cast<const char*>(manifest), manifest_size);
    const std::string_view second(static_cast<const char*>(tensors), tensors_size);
    return loaded([&] { return vitquant::load_engine(first, second, threads); }, error, error_size);
}

void vitquant_free(vitquant_program* program) { delete program; }

void vitquant_image_shape(const vitquant_program* program, size_t shape[3]) {
    for (size_t i = 0; i < 3; ++i) shape[i] = size_t(program->engine->image_shape()[i]);
}

size_t vitquant_outputs(const vitquant_program* program) { return program->engine->outputs(); }

float vitquant_scale(const vitquant_program* program, size_t output) {
    const auto& scale = program->engine->scale();
    return scale[scale.size() > 1 ? output : 0];
}

const char* vitquant_metadata(const vitquant_program* program) { return program->engine->metadata().c_str(); }

const char* vitquant_isa(const vitquant_program* program) { return program->engine->isa().c_str(); }

size_t vitquant_threads(const vitquant_program* program) { return program->engine->threads(); }

int vitquant_run(const vitquant_program* program, const uint8_t* images, size_t count, int32_t* logits) {
    try {
        program->engine->run(images, count, logits);
        return 0;
    } catch (const std::exception&) {
        return 1;
    }
}

}  // extern "C"
