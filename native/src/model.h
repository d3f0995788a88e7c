// The code that AOTInductor has generated, behind three functions. All of it, and nothing else, is compiled for more than
// the architecture's plainest processor: call nothing here before the processor has been checked.
#pragma once

#include "tensors.h"

class Model;

// Raises whatever the generated code raises.
Model *open_model();
void close_model(Model *model) noexcept;
// Takes the inputs' handles, gives the outputs'. Within an ArenaScope.
void run_model(Model &model, AtenTensorHandle *inputs, AtenTensorHandle *outputs);
