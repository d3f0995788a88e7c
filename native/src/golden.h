/* Golden decisions: observations with what the trained policy decides.
 *
 * Little-endian, without padding: GOLDEN_MAGIC, 64 bytes of the policy's name filled up with zeros, four uint64: number
 * of decisions, bytes of an observation, of an action, of its values; a float64, the largest allowed difference of a
 * number; then for each decision a byte that is 1 where an episode starts, the observation, the action, the values.
 */
#ifndef GOLDEN_H
#define GOLDEN_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GOLDEN_MAGIC "GOLDEN1\n"

struct golden {
    char name[64];
    uint64_t decisions, observation_bytes, action_bytes, values_bytes;
    double tolerance;
};

/* Bytes of the values that policy_step writes. */
size_t policy_values_bytes(void);

/* Read what stands between the magic and the decisions; 0 where that is not of this library's policy, tells of no
 * decision, or allows any difference. */
int policy_golden_read(FILE *file, struct golden *golden);

#ifdef __cplusplus
}
#endif

#endif
