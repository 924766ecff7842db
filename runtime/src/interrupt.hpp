// How a long computation is ended from outside.
#pragma once

#include <chrono>
#include <exception>

namespace vitquant {

class Interrupted : public std::exception {
public:
    const char* what() const noexcept override { return "interrupted"; }
};

// Whether the computation shall end, which the thread that was called asks for between pieces of its work.
class Interrupt {
public:
    virtual ~Interrupt() = default;

    // True for ever after the first time. Looks at the clock, and at the world ten times a second.
    bool requested() {
        if (requested_) return true;
        const auto now = std::chrono::steady_clock::now();
        if (now < next_) return false;
        requested_ = ask();
        next_ = std::chrono::steady_clock::now() + kPeriod;
        return requested_;
    }

private:
    static constexpr auto kPeriod = std::chrono::milliseconds(100);

    virtual bool ask() = 0;

    std::chrono::steady_clock::time_point next_ = std::chrono::steady_clock::now() + kPeriod;
    bool requested_ = false;
};

// Throws Interrupted if the computation shall end; where `interrupt` is null, nobody can ask for that.
inline void go_on(Interrupt* interrupt) {
    if (interrupt && interrupt->requested()) throw Interrupted();
}

}  // namespace vitquant
