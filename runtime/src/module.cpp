// The Python module: no more than what Python cannot do itself.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <new>
#include <string_view>
#include <system_error>
#include <tuple>

#include "engine.hpp"
#include "error.hpp"
#include "interrupt.hpp"

namespace nb = nanobind;
using vitquant::Engine;

using Images = nb::ndarray<const uint8_t, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Result = nb::ndarray<int32_t, nb::c_contig, nb::device::cpu>;
using Names = std::vector<std::string>;

namespace {

void check_images(const Engine& engine, const Images& images) {
    for (size_t i = 0; i < 3; ++i)
        if (int64_t(images.shape(i + 1)) != engine.image_shape()[i])
            throw vitquant::Error("images of another shape than the program's");
}

// Python's handlers of signals, such as the one that makes KeyboardInterrupt of Ctrl-C. Any exception of theirs ends
// the computation. They run in the main thread only.
class Signals final : public vitquant::Interrupt {
    bool ask() override {
        const nb::gil_scoped_acquire acquired;
        return PyErr_CheckSignals() != 0;
    }
};

// What `work` gives, computed without the GIL.
template <typename Work>
auto interruptible(bool in_main_thread, Work work) {
    try {
        Signals signals;
        const nb::gil_scoped_release released;
        return work(in_main_thread ? &signals : nullptr);
    } catch (const vitquant::Interrupted&) {
        throw nb::python_error();
    }
}

std::unique_ptr<Engine> load(const nb::bytes& path, const Names& outputs, size_t threads, bool in_main_thread) {
    const std::string given(path.c_str(), path.size());
    return interruptible(in_main_thread, [&](vitquant::Interrupt* interrupt) {
        return vitquant::load_engine(given, outputs, threads, interrupt);
    });
}

std::unique_ptr<Engine> loads(const nb::bytes& manifest, const nb::bytes& tensors, const Names& outputs, size_t threads,
                              bool in_main_thread) {
    const std::string_view first(manifest.c_str(), manifest.size()), second(tensors.c_str(), tensors.size());
    return interruptible(in_main_thread, [&](vitquant::Interrupt* interrupt) {
        return vitquant::load_engine(first, second, outputs, threads, interrupt);
    });
}

std::string explain(const nb::bytes& path, const Names& outputs, bool in_main_thread) {
    const std::string given(path.c_str(), path.size());
    return interruptible(in_main_thread, [&](vitquant::Interrupt* interrupt) {
        return vitquant::explain_program(given, outputs, interrupt);
    });
}

std::vector<std::pair<std::string, double>> profile(const Engine& engine, Images images, bool in_main_thread) {
    check_images(engine, images);
    const auto timings = interruptible(in_main_thread, [&](vitquant::Interrupt* interrupt) {
        return engine.profile(images.data(), images.shape(0), interrupt);
    });
    std::vector<std::pair<std::string, double>> found;
    for (const Engine::Timing& timing : timings) found.emplace_back(timing.label, timing.seconds);
    return found;
}

// Fills the results, which are those of the first outputs.
void run(const Engine& engine, Images images, const std::vector<Result>& results, bool in_main_thread) {
    check_images(engine, images);
    bool fits = results.size() <= engine.outputs().size();
    std::vector<int32_t*> to;
    for (size_t i = 0; fits && i < results.size(); ++i) {
        const std::vector<int64_t>& shape = engine.outputs()[i].shape;
        fits = results[i].ndim() == shape.size() + 1 && results[i].shape(0) == images.shape(0);
        for (size_t axis = 0; fits && axis < shape.size(); ++axis)
            fits = int64_t(results[i].shape(axis + 1)) == shape[axis];
        to.push_back(results[i].data());
    }
    if (!fits) throw vitquant::Error("results of another shape than the program's outputs");
    interruptible(in_main_thread, [&](vitquant::Interrupt* interrupt) {
        engine.run(images.data(), images.shape(0), to.data(), to.size(), interrupt);
    });
}

// Name, shape and scale of each chosen output.
std::vector<std::tuple<std::string, std::vector<int64_t>, std::vector<float>>> outputs(const Engine& engine) {
    std::vector<std::tuple<std::string, std::vector<int64_t>, std::vector<float>>> found;
    for (const Engine::Output& output : engine.outputs()) found.emplace_back(output.name, output.shape, output.scale);
    return found;
}

}  // namespace

NB_MODULE(_native, module) {
    nb::register_exception_translator(
        [](const std::exception_ptr& caught, void*) {
            try {
                std::rethrow_exception(caught);
            } catch (const vitquant::Error& error) {
                PyErr_SetString(PyExc_ValueError, error.what());
            } catch (const std::bad_alloc&) {
                PyErr_SetString(PyExc_MemoryError, "vitquant_runtime: not enough memory");
            } catch (const std::system_error& error) {
                const nb::object args = nb::make_tuple(error.code().value(), vitquant::printable(error.what()));
                PyErr_SetObject(PyExc_OSError, args.ptr());
            }
        },
        nullptr);
    nb::class_<Engine>(module, "Engine")
        .def_prop_ro("image_shape", &Engine::image_shape)
        .def_prop_ro("outputs", &outputs)
        .def_prop_ro("output_names", &Engine::output_names)
        .def_prop_ro("metadata", &Engine::metadata)
        .def_prop_ro("isa", &Engine::isa)
        .def_prop_ro("threads", &Engine::threads)
        .def("profile", &profile, nb::arg("images").noconvert(), nb::arg("in_main_thread"))
        .def("run", &run, nb::arg("images").noconvert(), nb::arg("results").noconvert(), nb::arg("in_main_thread"));
    module.def("load", &load, nb::arg("path"), nb::arg("outputs"), nb::arg("threads"), nb::arg("in_main_thread"));
    module.def("loads", &loads, nb::arg("manifest"), nb::arg("tensors"), nb::arg("outputs"), nb::arg("threads"),
               nb::arg("in_main_thread"));
    module.def("explain", &explain, nb::arg("path"), nb::arg("outputs"), nb::arg("in_main_thread"));
}
