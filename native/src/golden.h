/* Golden decisions: observations with what the trained policy decides.
 *
 * Little-endian, without padding: GOLDEN_MAGIC, 64 bytes of the policy's name filled up with zeros, four uint64: number
 * of decisions, then of each decision the bytes of all observations, of all actions, of all values; a float64, by
 * which a number may differ, in shares of its size above 1; then for each decision a byte of flags, the observations,
 * the actions, the values.
 */
#ifndef GOLDEN_H
#define GOLDEN_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GOLDEN_MAGIC "GOLDEN2\n"

enum {
    GOLDEN_STARTS = 1, /* an episode starts */
    GOLDEN_TIE = 2,    /* two values are so close that rounding may choose another action */
    GOLDEN_FLAGS = 3
};

struct golden {
    char name[64];
    uint64_t decisions, observation_bytes, action_bytes, values_bytes;
    double tolerance;
};

/* Read what stands between the magic and the decisions; 0 where that is not of this library's policy, tells of no
 * decision, or allows any difference. */
int policy_golden_read(FILE *file, struct golden *golden);

#ifdef __cplusplus
}
#endif

#endif
