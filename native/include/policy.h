/* A policy as a C library: observations in, one decision out. The state of an episode is kept in a handle.
 *
 *     policy *p;
 *     if (policy_open(&p) != POLICY_OK) ...
 *     while (playing) {
 *         policy_step(p, screen, &action, values);
 *         ...
 *         if (the episode has ended) policy_reset(p);
 *     }
 *     policy_close(p);
 *
 * Any number of handles may be open. Threads may each use their own; two threads must not use one at the same time.
 * Between policy_open and policy_close nothing but a self-test allocates memory. Nothing is printed, no exception
 * leaves the library.
 * The queries need no handle, run on any processor, and give memory that is the library's own and stays as it is.
 */
#ifndef POLICY_H
#define POLICY_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    POLICY_OK = 0,
    POLICY_ARGUMENT = 1,  /* a pointer is NULL that must not be */
    POLICY_PROCESSOR = 2, /* the processor lacks instructions that the library was built for */
    POLICY_MEMORY = 3,    /* there is no memory for a handle */
    POLICY_FILE = 4,      /* a file of golden decisions cannot be read, or is another policy's */
    POLICY_DAMAGED = 5,   /* the weights are not those that the library was built with */
    POLICY_WRONG = 6,     /* a golden decision has come out otherwise, by more than rounding */
    POLICY_FAILED = 7,    /* the compiled program has failed; the state is as it was */
    POLICY_SEVERAL = 8    /* there are several observations or actions: call policy_decide */
} policy_status;

/* One named array. A dtype is NumPy's name for it; the first size is 1, the batch. Of an input that is a state, `next` is
 * the place of the output that is its next value; otherwise, and of outputs, -1. */
typedef struct {
    const char *name, *dtype;
    size_t bytes, dimensions;
    const int64_t *shape;
    int next;
} policy_array;

typedef struct policy policy;

const char *policy_name(void);                          /* of the policy, such as "dqn" */
const char *policy_facts(void);                         /* its profile's facts, names, license and rate, as JSON */
const char *policy_description(void);                   /* manifest.json's environment, actions, inputs..., as JSON */
const char *policy_instructions(void);                  /* what the library was built for, such as "x86-64-v3" */
size_t policy_inputs(const policy_array **arrays);      /* observations first, then states, then is_init */
size_t policy_outputs(const policy_array **arrays);     /* actions, the values they were chosen by, then next states */
size_t policy_observations(void);                       /* how many of the inputs are observations */
size_t policy_action_outputs(void);                     /* how many of the outputs are actions */
size_t policy_values(void);                             /* how many of the outputs are values */
int policy_input(const char *name);                     /* its place among the inputs, or -1 */
int policy_output(const char *name);                    /* its place among the outputs, or -1 */
size_t policy_actions(const char *const **names);       /* of the indices; none unless the one action is an index */
const char *policy_message(policy_status status);       /* what a status means, in English */

policy_status policy_open(policy **handle);             /* at the start of an episode; *handle is NULL after an error */
void policy_close(policy *handle);                      /* NULL is closed already */
policy_status policy_reset(policy *handle);             /* the next step is an episode's first */

/* Decide, with one observation and one action. `values`, which may be NULL, are written one after the other. For Atari:
 * uint8 [210, 160, 3], one int64, and a float32 for each action. */
policy_status policy_step(policy *handle, const void *observation, void *action, void *values);

/* Decide, with any number of them: a pointer for each observation, action and value, in the order of the queries, to
 * memory aligned for its dtype. `values` may be NULL, and so may each of its pointers. */
policy_status policy_decide(policy *handle, const void *const *observations, void *const *actions, void *const *values);

/* The same as a pure function: all inputs in, all outputs out, in the order of the queries. The state that is kept
 * in the handle is neither used nor changed. */
policy_status policy_run(policy *handle, const void *const *inputs, void *const *outputs);

/* Check the weights' SHA-256, then replay the golden decisions in a file; `decisions`, which may be NULL, is how many
 * came out right. The handle is at the start of an episode afterwards. */
policy_status policy_selftest(policy *handle, const char *golden, size_t *decisions);

/* The same; `rounded`, which may be NULL, is how many of them are not the same to the last bit: numbers that another
 * build rounds otherwise, and other actions where two values are as close as that. */
policy_status policy_selftest_rounding(policy *handle, const char *golden, size_t *decisions, size_t *rounded);

#ifdef __cplusplus
}
#endif

#endif
