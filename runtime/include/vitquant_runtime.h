/* Runs integer programs of Vision Transformers: uint8 images in, int32 outputs, the same integers everywhere.
 *
 * A program is two files, program.json and program.safetensors, as `vitquant` writes them. Real logits are the integers
 * times `vitquant_scale`. A program may have other outputs, such as the tokens; which of them are computed is chosen
 * when it is loaded, and each has a number in the order of the choice. All functions may be called from any number of
 * threads at once, also on the same program, but for vitquant_free. VITQUANT_ISA in the environment chooses an
 * instruction set: avx512vbmi, avx2, portable, ...
 */
#ifndef VITQUANT_RUNTIME_H
#define VITQUANT_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct vitquant_program vitquant_program;

/* Loads a program: `path` (UTF-8) is a folder or its program.json; 0 threads takes all processors. Null where it cannot
 * be run; `error` (if not null) then holds the reason, cut to `error_size` bytes with the final 0. */
vitquant_program* vitquant_load(const char* path, size_t threads, char* error, size_t error_size);

/* The same for a program in memory: the bytes of its two files, which are needed during the call only. */
vitquant_program* vitquant_load_bytes(const void* manifest, size_t manifest_size, const void* tensors,
                                      size_t tensors_size, size_t threads, char* error, size_t error_size);

/* The same for the outputs of these names, in this order; the first of the program if `output_count` is 0, as above. */
vitquant_program* vitquant_load_outputs(const char* path, const char* const* outputs, size_t output_count,
                                        size_t threads, char* error, size_t error_size);
vitquant_program* vitquant_load_bytes_outputs(const void* manifest, size_t manifest_size, const void* tensors,
                                              size_t tensors_size, const char* const* outputs, size_t output_count,
                                              size_t threads, char* error, size_t error_size);

void vitquant_free(vitquant_program* program); /* null is allowed */

/* Size of an image, uint8 [channels, height, width] in row-major order, to be given as it is, not normalised. */
void vitquant_image_shape(const vitquant_program* program, size_t shape[3]);

/* Number of integers per image of the first chosen output: of logits, in most cases. */
size_t vitquant_outputs(const vitquant_program* program);

/* What one of these integers is multiplied with to be a real number. */
float vitquant_scale(const vitquant_program* program, size_t output);

/* Names of all outputs that the program has, chosen or not; null after the last. They live as long as the program. */
const char* const* vitquant_output_names(const vitquant_program* program);

/* The chosen outputs: their number; and of each the name, which lives as long as the program, the shape per image, of
 * which the number of axes is returned, [C] or [N, C], and the scale of a channel. */
size_t vitquant_chosen_outputs(const vitquant_program* program);
const char* vitquant_output_name(const vitquant_program* program, size_t number);
size_t vitquant_output_shape(const vitquant_program* program, size_t number, size_t shape[2]);
float vitquant_output_scale(const vitquant_program* program, size_t number, size_t channel);

/* What the program was made from, as JSON; and the instruction set in use. They live as long as the program. */
const char* vitquant_metadata(const vitquant_program* program);
const char* vitquant_isa(const vitquant_program* program);
size_t vitquant_threads(const vitquant_program* program);

/* `count` images to `logits` [count, vitquant_outputs], the first chosen output. 0 if all went well; else there was not
 * enough memory, or the system would not start so many threads. */
int vitquant_run(const vitquant_program* program, const uint8_t* images, size_t count, int32_t* logits);

/* The same for all chosen outputs: one array of each, [count, vitquant_output_shape]. */
int vitquant_run_outputs(const vitquant_program* program, const uint8_t* images, size_t count, int32_t* const* results);

#ifdef __cplusplus
}
#endif

#endif
