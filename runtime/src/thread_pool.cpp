#include "thread_pool.hpp"

#include <chrono>

#if defined(_WIN32)
#include <process.h>
#else
#include <unistd.h>
#endif

namespace vitquant {
namespace {

std::int64_t current_process() {
#if defined(_WIN32)
    return _getpid();
#else
    return getpid();
#endif
}

void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// A phase's last tasks usually end within microseconds of each other; to sleep and be woken costs tens. Who waits longer
// offers its processor to others, but stays ready: one that sleeps is woken on the processor of the one that wakes it.
constexpr auto kSpin = std::chrono::microseconds(30), kYield = std::chrono::microseconds(400);

}  // namespace

void run_alone(Job& job) {
    for (std::size_t phase = 0; phase < job.phases(); ++phase)
        for (std::size_t task = 0, count = job.tasks(phase); task < count; ++task) job.execute(phase, task, 0);
}

ThreadPool::ThreadPool(std::size_t threads) : threads_(threads < 1 ? 1 : threads) {}

ThreadPool::~ThreadPool() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

// After a fork the threads exist in the parent only, and what they wait on would be waited for here for ever: the
// child leaves the pool as it is.
void ThreadPool::Deleter::operator()(ThreadPool* pool) const {
    if (!pool->is_of_another_process()) delete pool;
}

bool ThreadPool::is_of_another_process() const { return process_ && process_ != current_process(); }

void ThreadPool::start() {
    process_ = current_process();
    workers_.reserve(threads_ - 1);
    for (std::size_t worker = 1; worker < threads_; ++worker) workers_.emplace_back([this, worker] { serve(worker); });
}

void ThreadPool::prepare(std::size_t phases) {
    if (phases > counter_count_) {
        counters_ = std::make_unique<Phase[]>(phases);
        counter_count_ = phases;
    }
    for (std::size_t i = 0; i < phases; ++i) {
        counters_[i].next.store(0, std::memory_order_relaxed);
        counters_[i].done.store(0, std::memory_order_relaxed);
    }
}

void ThreadPool::run(Job& job) {
    if (threads_ == 1) return run_alone(job);
    std::unique_lock<std::mutex> lease(lease_, std::try_to_lock);
    if (!lease.owns_lock()) return run_alone(job);
    if (workers_.empty()) start();
    if (is_of_another_process()) return run_alone(job);
    prepare(job.phases());
    {
        std::lock_guard<std::mutex> lock(mutex_);
        job_ = &job;
        ++generation_;
    }
    wake_.notify_all();
    take_part(job, 0);
    // Whoever has not come yet stays out; the others are past their last task, or about to see that there is none.
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;
    left_.wait(lock, [this] { return inside_ == 0; });
}

void ThreadPool::serve(std::size_t worker) {
    std::uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        wake_.wait(lock, [&] { return stopping_ || (job_ && generation_ != seen); });
        if (stopping_) return;
        seen = generation_;
        Job& job = *job_;
        ++inside_;
        lock.unlock();
        take_part(job, worker);
        lock.lock();
        if (--inside_ == 0) left_.notify_one();
    }
}

void ThreadPool::take_part(Job& job, std::size_t worker) {
    for (std::size_t i = 0, phases = job.phases(); i < phases; ++i) {
        Phase& phase = counters_[i];
        const std::size_t tasks = job.tasks(i);
        for (;;) {
            const std::size_t task = phase.next.fetch_add(1, std::memory_order_relaxed);
            if (task >= tasks) break;
            job.execute(i, task, worker);
            if (phase.done.fetch_add(1) + 1 == tasks && sleepers_.load() > 0) {
                // Under the lock, so that nobody is between looking at `done` and falling asleep.
                { std::lock_guard<std::mutex> lock(mutex_); }
                finished_.notify_all();
            }
        }
        await(phase, tasks);
    }
}

void ThreadPool::await(const Phase& phase, std::size_t tasks) {
    const auto complete = [&] { return phase.done.load() >= tasks; };
    if (complete()) return;
    const auto start = std::chrono::steady_clock::now();
    for (auto waited = start - start; waited < kYield; waited = std::chrono::steady_clock::now() - start) {
        for (int i = 0; i < 64; ++i) {
            if (complete()) return;
            relax();
        }
        if (waited > kSpin) std::this_thread::yield();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1);
    finished_.wait(lock, complete);
    sleepers_.fetch_sub(1);
}

}  // namespace vitquant
