// Threads that stay: they sleep between runs, and share out the tasks of each phase of a run.
#pragma once

#include <atomic>
#include <cstddef>

#include "interrupt.hpp"

namespace vitquant {

// Work in phases. Tasks of a phase are independent of each other; a phase starts when the one before is complete.
class Job {
public:
    virtual size_t phases() const = 0;
    virtual size_t tasks(size_t phase) const = 0;
    virtual void execute(size_t phase, size_t task, size_t worker) = 0;

protected:
    ~Job() = default;
};

class ThreadPool {
public:
    // `threads` counts the caller. The others are started by the first run, and by the first in a process that was
    // forked from this one: it has none of its parent's threads.
    explicit ThreadPool(size_t threads) : threads_(threads < 1 ? 1 : threads) {}
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    size_t threads() const { return threads_; }

    // Executes a job, the caller taking part; workers are numbered from 0. While one caller's job runs, another
    // caller's runs on its own thread alone: more threads would only take turns. Throws Interrupted where the caller is
    // interrupted, after the last task that was under way, and std::system_error if threads cannot be started; the next
    // run then tries again.
    void run(Job& job, Interrupt* interrupt = nullptr);

private:
    class Crew;

    Crew& crew();

    const size_t threads_;
    std::atomic<Crew*> crew_{nullptr};
};

}  // namespace vitquant
