#include "thread_pool.hpp"

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#if defined(_WIN32)
#include <process.h>
#else
#include <unistd.h>
#endif

namespace vitquant {
namespace {

int64_t current_process() {
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

// A phase's last tasks usually end within microseconds of each other; to sleep and be woken costs tens. Who waits
// longer offers its processor to others, but stays ready: one that sleeps is woken on the processor of the one that
// wakes it.
constexpr auto kSpin = std::chrono::microseconds(30), kYield = std::chrono::microseconds(400);

// Executes on the calling thread alone, as worker 0.
void run_alone(Job& job, Interrupt* interrupt) {
    for (size_t phase = 0; phase < job.phases(); ++phase)
        for (size_t task = 0, count = job.tasks(phase); task < count; ++task) {
            job.execute(phase, task, 0);
            go_on(interrupt);
        }
}

}  // namespace

// The threads of one process.
class ThreadPool::Crew {
public:
    explicit Crew(size_t threads) : threads_(threads) {}
    ~Crew() { dismiss(); }

    bool is_of_this_process() const { return process_ == current_process(); }

    // Whether the crew was free, and executed the job.
    bool run(Job& job, Interrupt* interrupt) {
        if (busy_.exchange(true, std::memory_order_acquire)) return false;
        const Lease lease{busy_};
        if (workers_.empty()) start();
        prepare(job.phases());
        {
            std::lock_guard<std::mutex> lock(mutex_);
            job_ = &job;
            ++generation_;
        }
        wake_.notify_all();
        take_part(job, 0, interrupt);
        {
            // Whoever has not come yet stays out; the others are past their last task, or about to see that there is
            // none.
            std::unique_lock<std::mutex> lock(mutex_);
            job_ = nullptr;
            left_.wait(lock, [this] { return inside_ == 0; });
        }
        if (interrupted_) throw Interrupted();
        return true;
    }

private:
    struct Lease {
        std::atomic<bool>& busy;
        ~Lease() { busy.store(false, std::memory_order_release); }
    };

    // Counters of a phase, alone on their cache line: every thread writes them.
    struct alignas(64) Phase {
        std::atomic<size_t> next{0}, done{0};
    };

    void start() {
        try {
            workers_.reserve(threads_ - 1);
            while (workers_.size() + 1 < threads_) {
                const size_t worker = workers_.size() + 1;
                workers_.emplace_back([this, worker] { serve(worker); });
            }
        } catch (const std::system_error& error) {
            const std::string started = std::to_string(workers_.size() + 1);
            dismiss();
            throw std::system_error(error.code(), "threads: the system starts " + started + " of " +
                                                      std::to_string(threads_) + " only; load the program with fewer");
        }
    }

    void dismiss() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stopping_ = true;
        }
        wake_.notify_all();
        for (std::thread& worker : workers_) worker.join();
        workers_.clear();
        stopping_ = false;
    }

    void prepare(size_t phases) {
        if (phases > counter_count_) {
            counters_ = std::make_unique<Phase[]>(phases);
            counter_count_ = phases;
        }
        for (size_t i = 0; i < phases; ++i) {
            counters_[i].next.store(0, std::memory_order_relaxed);
            counters_[i].done.store(0, std::memory_order_relaxed);
        }
        interrupted_ = false;
    }

    void serve(size_t worker) {
        uint64_t seen = 0;
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return stopping_ || (job_ && generation_ != seen); });
            if (stopping_) return;
            seen = generation_;
            Job& job = *job_;
            ++inside_;
            lock.unlock();
            take_part(job, worker, nullptr);
            lock.lock();
            if (--inside_ == 0) left_.notify_one();
        }
    }

    // After an interruption tasks are counted, but not executed: nobody waits for what does not come.
    void take_part(Job& job, size_t worker, Interrupt* interrupt) {
        for (size_t i = 0, phases = job.phases(); i < phases; ++i) {
            Phase& phase = counters_[i];
            const size_t tasks = job.tasks(i);
            for (;;) {
                const size_t task = phase.next.fetch_add(1, std::memory_order_relaxed);
                if (task >= tasks) break;
                if (!interrupted_.load(std::memory_order_relaxed)) job.execute(i, task, worker);
                if (interrupt && interrupt->requested()) interrupted_ = true;
                if (phase.done.fetch_add(1) + 1 == tasks && sleepers_.load() > 0) {
                    // Under the lock, so that nobody is between looking at `done` and falling asleep.
                    {
                        std::lock_guard<std::mutex> lock(mutex_);
                    }
                    finished_.notify_all();
                }
            }
            await(phase, tasks);
        }
    }

    void await(const Phase& phase, size_t tasks) {
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

    const size_t threads_;
    const int64_t process_ = current_process();
    std::atomic<bool> busy_{false};  // with a caller's job, which alone touches what follows
    std::vector<std::thread> workers_;
    std::unique_ptr<Phase[]> counters_;
    size_t counter_count_ = 0;
    std::atomic<bool> interrupted_{false};

    std::mutex mutex_;  // guards what follows
    std::condition_variable wake_, finished_, left_;
    std::atomic<int> sleepers_{0};  // threads that wait for the end of a phase
    Job* job_ = nullptr;
    uint64_t generation_ = 0;
    size_t inside_ = 0;  // workers that take part in the job
    bool stopping_ = false;
};

// A crew of the parent process is left as it is: what its threads wait on would be waited for here for ever.
ThreadPool::~ThreadPool() {
    Crew* crew = crew_.load();
    if (crew && crew->is_of_this_process()) delete crew;
}

ThreadPool::Crew& ThreadPool::crew() {
    Crew* found = crew_.load(std::memory_order_acquire);
    if (found && found->is_of_this_process()) return *found;
    auto made = std::make_unique<Crew>(threads_);
    // Of several first callers in a process one wins, and `found` is its crew for the others.
    if (crew_.compare_exchange_strong(found, made.get())) return *made.release();
    return *found;
}

void ThreadPool::run(Job& job, Interrupt* interrupt) {
    if (threads_ == 1 || !crew().run(job, interrupt)) run_alone(job, interrupt);
}

}  // namespace vitquant
