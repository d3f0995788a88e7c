/* What this library's code was built for, and whether the processor has it. */
#ifndef PROCESSOR_H
#define PROCESSOR_H

#ifdef __cplusplus
extern "C" {
#endif

/* Compiled for the plainest processor of the architecture. */
int processor_suffices(void);
const char *processor_needed(void);

#ifdef __cplusplus
}
#endif

#endif
