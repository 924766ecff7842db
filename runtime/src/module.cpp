// The Python module: no more than what Python cannot do itself.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
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

void run(const Engine& engine, Images images, Logits logits) {
    bool fits = logits.shape(0) == images.shape(0) && logits.shape(1) == engine.outputs();
    for (std::size_t i = 0; i < 3; ++i) fits = fits && std::int64_t(images.shape(i + 1)) == engine.image_shape()[i];
    if (!fits) throw vitquant::Error("images and logits do not fit the program");
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
        .def("run", &run, nb::arg("images").noconvert(), nb::arg("logits").noconvert());
    module.def("load", &vitquant::load_engine, nb::arg("path"), nb::arg("threads"),
               nb::call_guard<nb::gil_scoped_release>());
}
