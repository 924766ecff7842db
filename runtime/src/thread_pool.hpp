// Threads that stay: they sleep between runs, and share out the tasks of each phase of a run.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace vitquant {

// Work in phases. Tasks of a phase are independent of each other; a phase starts when the one before is complete.
class Job {
public:
    virtual std::size_t phases() const = 0;
    virtual std::size_t tasks(std::size_t phase) const = 0;
    virtual void execute(std::size_t phase, std::size_t task, std::size_t worker) = 0;

protected:
    ~Job() = default;
};

// Executes on the calling thread alone, as worker 0.
void run_alone(Job& job);

class ThreadPool {
public:
    struct Deleter {
        void operator()(ThreadPool* pool) const;
    };
    using Owned = std::unique_ptr<ThreadPool, Deleter>;

    // `threads` counts the caller. Threads are started by the first run.
    static Owned make(std::size_t threads) { return Owned(new ThreadPool(threads)); }
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    std::size_t threads() const { return threads_; }

    // Executes a job, the caller taking part; workers are numbered from 0. While one caller's job runs, another
    // caller's runs on its own thread alone: more threads would only take turns.
    void run(Job& job);

private:
    explicit ThreadPool(std::size_t threads);
    ~ThreadPool();

    // Counters of a phase, alone on their cache line: every thread writes them.
    struct alignas(64) Phase {
        std::atomic<std::size_t> next{0}, done{0};
    };

    bool is_of_another_process() const;
    void start();
    void prepare(std::size_t phases);
    void serve(std::size_t worker);
    void take_part(Job& job, std::size_t worker);
    void await(const Phase& phase, std::size_t tasks);

    const std::size_t threads_;
    std::int64_t process_ = 0;  // in which the threads live: a fork has none of them
    std::mutex lease_;          // held by the caller whose job the threads work on
    std::vector<std::thread> workers_;
    std::unique_ptr<Phase[]> counters_;
    std::size_t counter_count_ = 0;

    std::mutex mutex_;  // guards what follows
    std::condition_variable wake_, finished_, left_;
    std::atomic<int> sleepers_{0};  // threads that wait for the end of a phase
    Job* job_ = nullptr;
    std::uint64_t generation_ = 0;
    std::size_t inside_ = 0;  // workers that take part in the job
    bool stopping_ = false;
};

}  // namespace vitquant
