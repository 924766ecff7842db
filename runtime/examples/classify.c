/* Classifies raw images: classify PROGRAM IMAGES [THREADS]
 *
 * IMAGES holds uint8 pixels [count, channels, height, width] and nothing else; a line of the five likeliest classes is
 * printed for each image.
 *
 *   cc classify.c -I ../include -L build -lvitquant_runtime -lstdc++ -lm -lpthread -o classify
 */
#include <stdio.h>
#include <stdlib.h>

#include "vitquant_runtime.h"

static void print_best(const vitquant_program* program, const int32_t* logits, size_t outputs) {
    size_t shown[5];
    for (size_t rank = 0; rank < 5 && rank < outputs; ++rank) {
        size_t best = outputs;
        for (size_t i = 0; i < outputs; ++i) {
            int seen = 0;
            for (size_t r = 0; r < rank; ++r) seen |= shown[r] == i;
            if (!seen && (best == outputs ||
                          logits[i] * vitquant_scale(program, i) > logits[best] * vitquant_scale(program, best)))
                best = i;
        }
        shown[rank] = best;
        printf("%s%zu (%.3f)", rank ? "  " : "", best, logits[best] * vitquant_scale(program, best));
    }
    printf("\n");
}

int main(int argc, char** argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: %s PROGRAM IMAGES [THREADS]\n", argv[0]);
        return 2;
    }
    char error[512];
    vitquant_program* program = vitquant_load(argv[1], argc > 3 ? strtoul(argv[3], NULL, 10) : 0, error, sizeof error);
    if (!program) {
        fprintf(stderr, "%s\n", error);
        return 1;
    }
    size_t shape[3];
    vitquant_image_shape(program, shape);
    const size_t bytes = shape[0] * shape[1] * shape[2], outputs = vitquant_outputs(program);
    uint8_t* image = malloc(bytes);
    int32_t* logits = malloc(outputs * sizeof *logits);
    FILE* file = fopen(argv[2], "rb");
    int failed = !file || !image || !logits;
    while (!failed && fread(image, 1, bytes, file) == bytes) {
        failed = vitquant_run(program, image, 1, logits);
        if (!failed) print_best(program, logits, outputs);
    }
    if (failed) fprintf(stderr, "cannot read %s, or too little memory\n", argv[2]);
    if (file) fclose(file);
    free(image);
    free(logits);
    vitquant_free(program);
    return failed;
}
