// A loaded program, ready to run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "format/manifest.hpp"
#include "interrupt.hpp"
#include "plan/plan.hpp"
#include "thread_pool.hpp"

namespace vitquant {

class Engine {
public:
    // Computes the named outputs of the program; the first one if none is named. `threads` of 0 takes all processors
    // that this process may use; an empty `isa` the quickest that the machine has. Keeps nothing of the program's
    // files. Throws Error, and Interrupted.
    Engine(const Program& program, const std::vector<std::string>& outputs, size_t threads, const std::string& isa,
           Interrupt* interrupt = nullptr);
    ~Engine();

    struct Output {
        std::string name;
        std::vector<int64_t> shape;  // of an image: [C] of a pooled output, else [N, C]
        std::vector<float> scale;    // 1, or one per channel
        std::vector<int32_t> zero;   // one per channel
        DType type;                  // of the codes
        int value;                   // its number in the plan

        size_t elements() const;
    };

    // uint8 images [count, ...image_shape] to the first `written` of the outputs, int32 [count, ...shape] each. From
    // any number of threads at once. Throws Interrupted, with some of the results written, std::bad_alloc, and
    // std::system_error if threads cannot be started.
    void run(const uint8_t* images, size_t count, int32_t* const* results, size_t written,
             Interrupt* interrupt = nullptr) const;
    void run(const uint8_t* images, size_t count, int32_t* first, Interrupt* interrupt = nullptr) const {
        run(images, count, &first, 1, interrupt);
    }

    struct Timing {
        std::string label;  // of the operations that are executed together, such as `linear+add`
        double seconds;
    };

    // Time of each step, executed in order on the calling thread alone.
    std::vector<Timing> profile(const uint8_t* images, size_t count, Interrupt* interrupt = nullptr) const;

    const std::vector<int64_t>& image_shape() const { return image_shape_; }
    const std::vector<Output>& outputs() const { return outputs_; }                 // that are computed
    const std::vector<std::string>& output_names() const { return output_names_; }  // that the program has
    const std::string& metadata() const { return metadata_; }                       // JSON
    const std::string& isa() const { return isa_; }
    size_t threads() const { return pool_.threads(); }

private:
    class Workspace;
    class Run;

    std::unique_ptr<Workspace> take_workspace() const;
    void give_back(std::unique_ptr<Workspace> workspace) const;

    std::vector<int64_t> image_shape_;
    size_t image_bytes_ = 0;
    std::string metadata_, isa_;
    Plan plan_;
    std::vector<Output> outputs_;
    std::vector<std::string> output_names_;
    size_t images_at_once_ = 1;
    mutable ThreadPool pool_;

    mutable std::mutex mutex_;  // only ever tried: whoever held it at a fork never lets go of it in the child
    mutable std::vector<std::unique_ptr<Workspace>> spare_;  // of runs that have ended
};

// Reads, checks and prepares a program; `path` is a folder or its program.json. VITQUANT_ISA in the environment names
// the instruction set; `outputs` are those of the engine. Throws Error, and Interrupted.
std::unique_ptr<Engine> load_engine(const std::string& path, const std::vector<std::string>& outputs, size_t threads,
                                    Interrupt* interrupt = nullptr);

// The same for the bytes of its two files.
std::unique_ptr<Engine> load_engine(std::string_view manifest, std::string_view tensors,
                                    const std::vector<std::string>& outputs, size_t threads,
                                    Interrupt* interrupt = nullptr);

// How a program would be executed, for people: steps, phases, memory. Throws as `load_engine`.
std::string explain_program(const std::string& path, const std::vector<std::string>& outputs,
                            Interrupt* interrupt = nullptr);

}  // namespace vitquant
