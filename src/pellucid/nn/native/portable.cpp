// The kernels in plain C++, for any processor.
#include <cmath>

#include "kernels.h"

#define LANES 1
#define FORM portable
#define NAME "plain C++"
#include "kernels.inl"
