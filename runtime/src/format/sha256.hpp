// SHA-256 (FIPS 180-4), to tell whether files are the ones that were written.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace vitquant {

class Sha256 {
public:
    void update(const void* data, size_t size);
    std::string hex();  // of all that was given; ends the computation

private:
    void compress(const uint8_t* block, size_t count);

    std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<uint8_t, 64> pending_{};
    uint64_t total_ = 0;
};

}  // namespace vitquant
