/* The weights, as they lie in the file that the generated code's constants were written to. */
    .section .rodata
    .balign 64
    .globl policy_weights
    .globl policy_weights_end
    .globl _binary_constants_bin_start /* the same, by the name that the generated code would copy them from */
policy_weights:
_binary_constants_bin_start:
    .incbin POLICY_WEIGHTS
policy_weights_end:
    .byte 0
    .section .note.GNU-stack, "", %progbits
