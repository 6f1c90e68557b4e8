/* Loops that do nothing but multiply and add, or nothing but move memory: the two ceilings that kernels are held against.
 *
 * A machine's peak is what its own registers and its own clock give at this moment, so it is measured, with the vectors of
 * the instruction set this file is compiled for (simd.h), and not computed from a data sheet.
 */
#ifndef FASTCONV_MACHINE_H
#define FASTCONV_MACHINE_H

#include "simd.h"

/* Chains of multiply-adds that do not wait for each other. Two units with a latency of 4 or 5 cycles need 10; with the two
 * constants 12 chains take 14 registers, which every instruction set here has. */
#define FC_CHAINS(step) step(0) step(1) step(2) step(3) step(4) step(5) step(6) step(7) step(8) step(9) step(10) step(11)
enum { FC_CHAIN_COUNT = 12, FC_CHAIN_LENGTH = 4 };

/* `rounds` times FC_CHAIN_LENGTH multiply-adds in each of the chains; without FMA in the instruction set each is a
 * multiplication and an addition. The two empty asm statements keep the compiler from knowing the constants and from
 * leaving out what nobody reads. The fixed point of the recurrence is 1, so numbers stay normal for any number of rounds. */
#define FC_FMA_LOOP(T, S)                                                                                               \
    static void fc_fma_loop_##S(ptrdiff_t rounds)                                                                       \
    {                                                                                                                   \
        T factor = (T)0.999;                                                                                            \
        __asm__ volatile("" : "+m"(factor));                                                                            \
        const fc_vec_##S scale = factor - (fc_vec_##S){0}, shift = (1 - factor) - (fc_vec_##S){0};                      \
        FC_CHAINS(FC_CHAIN_START_##S)                                                                                   \
        for (ptrdiff_t r = 0; r < rounds; r++) {                                                                        \
            FC_CHAINS(FC_CHAIN_STEP) FC_CHAINS(FC_CHAIN_STEP) FC_CHAINS(FC_CHAIN_STEP) FC_CHAINS(FC_CHAIN_STEP)         \
        }                                                                                                               \
        fc_vec_##S sum = {0};                                                                                           \
        FC_CHAINS(FC_CHAIN_ADD)                                                                                         \
        __asm__ volatile("" : : "m"(sum));                                                                              \
    }
#define FC_CHAIN_START_f32(i) fc_vec_f32 chain##i = (float)i - (fc_vec_f32){0};
#define FC_CHAIN_START_f64(i) fc_vec_f64 chain##i = (double)i - (fc_vec_f64){0};
#define FC_CHAIN_STEP(i) chain##i = chain##i * scale + shift;
#define FC_CHAIN_ADD(i) sum += chain##i;
FC_FMA_LOOP(float, f32)
FC_FMA_LOOP(double, f64)

/* Operations of one round: a multiply-add counts as two. */
static inline double fc_fma_round_flops(ptrdiff_t itemsize)
{
    return 2.0 * FC_CHAIN_COUNT * FC_CHAIN_LENGTH * (FC_VECTOR_BYTES / (double)itemsize);
}

/* Read `nbytes` (whole blocks of 8 vectors; what is left over at the end is left out). */
static void fc_read_loop(const char *from, ptrdiff_t nbytes)
{
    const fc_ivec_f64 zero = {0};
    fc_ivec_f64 sum[8] = {zero, zero, zero, zero, zero, zero, zero, zero};
    for (ptrdiff_t i = 0; i + 8 * FC_VECTOR_BYTES <= nbytes; i += 8 * FC_VECTOR_BYTES) {
FC_UNROLL
        for (int j = 0; j < 8; j++) {
            fc_ivec_f64 v;
            memcpy(&v, from + i + j * FC_VECTOR_BYTES, sizeof v); /* at any address */
            if (j * FC_VECTOR_BYTES % 64 == 0)
                __builtin_prefetch(from + i + j * FC_VECTOR_BYTES + 4096);
            sum[j] ^= v;
        }
    }
    sum[0] ^= sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
    __asm__ volatile("" : : "m"(sum[0])); /* or none of it need be read */
}

#endif
