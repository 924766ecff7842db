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
    // `threads` of 0 takes all processors that this process may use; an empty `isa` the quickest that the machine has.
    // Keeps nothing of the program's files. Throws Error, and Interrupted.
    Engine(const Program& program, size_t threads, const std::string& isa, Interrupt* interrupt = nullptr);
    ~Engine();

    // uint8 images [count, ...image_shape] to logits int32 [count, outputs]. From any number of threads at once. Throws
    // Interrupted, with some of the logits written, std::bad_alloc, and std::system_error if threads cannot be started.
    void run(const uint8_t* images, size_t count, int32_t* logits, Interrupt* interrupt = nullptr) const;

    struct Timing {
        std::string label;  // of the operations that are executed together, such as `linear+add`
        double seconds;
    };

    // Time of each step, executed in order on the calling thread alone.
    std::vector<Timing> profile(const uint8_t* images, size_t count, Interrupt* interrupt = nullptr) const;

    const std::vector<int64_t>& image_shape() const { return image_shape_; }
    size_t outputs() const { return output_zero_.size(); }
    const std::vector<float>& scale() const { return scale_; }  // 1, or one for each output
    const std::string& metadata() const { return metadata_; }   // JSON
    const std::string& isa() const { return isa_; }
    size_t threads() const { return pool_.threads(); }

private:
    class Workspace;
    class Run;

    std::unique_ptr<Workspace> take_workspace() const;
    void give_back(std::unique_ptr<Workspace> workspace) const;

    std::vector<int64_t> image_shape_;
    size_t image_bytes_ = 0;
    std::vector<int32_t> output_zero_;
    DType output_type_;
    std::vector<float> scale_;
    std::string metadata_, isa_;
    Plan plan_;
    size_t images_at_once_ = 1;
    mutable ThreadPool pool_;

    mutable std::mutex mutex_;  // only ever tried: whoever held it at a fork never lets go of it in the child
    mutable std::vector<std::unique_ptr<Workspace>> spare_;  // of runs that have ended
};

// Reads, checks and prepares a program; `path` is a folder or its program.json. VITQUANT_ISA in the environment names
// the instruction set. Throws Error, and Interrupted.
std::unique_ptr<Engine> load_engine(const std::string& path, size_t threads, Interrupt* interrupt = nullptr);

// The same for the bytes of its two files.
std::unique_ptr<Engine> load_engine(std::string_view manifest, std::string_view tensors, size_t threads,
                                    Interrupt* interrupt = nullptr);

// How a program would be executed, for people: steps, phases, memory. Throws as `load_engine`.
std::string explain_program(const std::string& path, Interrupt* interrupt = nullptr);

}  // namespace vitquant
