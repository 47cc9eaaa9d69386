/* The generated messages under a name that fits a line: AGENT_PB(Process). */
#pragma once

#include "agent.pb-c.h"

#define AGENT_PB(name) Harpoon__Agent__V1__##name
