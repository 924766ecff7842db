// How a long computation is ended from outside.
#pragma once

#include <chrono>
#include <ctime>
#include <exception>

namespace vitquant {

class Interrupted : public std::exception {
public:
    const char* what() const noexcept override { return "interrupted"; }
};

// Whether the computation shall end, which the thread that was called asks for between pieces of its work.
class Interrupt {
public:
    explicit Interrupt(std::chrono::nanoseconds period = std::chrono::milliseconds(100))
        : period_(period), next_(now() + period) {}
    virtual ~Interrupt() = default;

    // True for ever after the first time. Looks at the clock, and asks once in every period.
    bool requested() {
        if (requested_) return true;
        if (now() < next_) return false;
        requested_ = ask();
        next_ = now() + period_;
        return requested_;
    }

private:
    virtual bool ask() = 0;

    // Milliseconds are exact enough, and where such a clock exists it takes a tenth of the time.
    static std::chrono::nanoseconds now() {
#if defined(CLOCK_MONOTONIC_COARSE)
        std::timespec time{};
        if (clock_gettime(CLOCK_MONOTONIC_COARSE, &time) == 0)
            return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
#endif
        return std::chrono::steady_clock::now().time_since_epoch();
    }

    std::chrono::nanoseconds period_, next_;
    bool requested_ = false;
};

// Throws Interrupted if the computation shall end; where `interrupt` is null, nobody can ask for that.
inline void go_on(Interrupt* interrupt) {
    if (interrupt && interrupt->requested()) throw Interrupted();
}

}  // namespace vitquant
