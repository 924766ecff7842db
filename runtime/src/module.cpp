// The Python module: no more than what Python cannot do itself.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "engine.hpp"
#include "error.hpp"

namespace nb = nanobind;
using vitquant::Engine;

using Images = nb::ndarray<const std::uint8_t, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Logits = nb::ndarray<std::int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

namespace {

void check_images(const Engine& engine, const Images& images) {
    for (std::size_t i = 0; i < 3; ++i)
        if (std::int64_t(images.shape(i + 1)) != engine.image_shape()[i])
            throw vitquant::Error("images of another shape than the program's");
}

std::vector<std::pair<std::string, double>> profile(const Engine& engine, Images images) {
    check_images(engine, images);
    std::vector<std::pair<std::string, double>> found;
    for (const Engine::Timing& timing : engine.profile(images.data(), images.shape(0)))
        found.emplace_back(timing.label, timing.seconds);
    return found;
}

void run(const Engine& engine, Images images, Logits logits) {
    check_images(engine, images);
    if (logits.shape(0) != images.shape(0) || logits.shape(1) != engine.outputs())
        throw vitquant::Error("logits of another shape than the program's");
    nb::gil_scoped_release release;
    engine.run(images.data(), images.shape(0), logits.data());
}

}  // namespace

NB_MODULE(_native, module) {
    nb::register_exception_translator(
        [](const std::exception_ptr& caught, void*) {
            try {
                std::rethrow_exception(caught);
            } catch (const vitquant::Error& error) {
                PyErr_SetString(PyExc_ValueError, error.what());
            }
        },
        nullptr);
    nb::class_<Engine>(module, "Engine")
        .def_prop_ro("image_shape", &Engine::image_shape)
        .def_prop_ro("outputs", &Engine::outputs)
        .def_prop_ro("scale", &Engine::scale)
        .def_prop_ro("metadata", &Engine::metadata)
        .def_prop_ro("isa", &Engine::isa)
        .def_prop_ro("threads", &Engine::threads)
        .def("profile", &profile, nb::arg("images").noconvert())
        .def("run", &run, nb::arg("images").noconvert(), nb::arg("logits").noconvert());
    module.def("load", &vitquant::load_engine, nb::arg("path"), nb::arg("threads"),
               nb::call_guard<nb::gil_scoped_release>());
}
