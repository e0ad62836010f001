"""Activation points: read or replace what flows through a model, at no cost while nobody listens.

A module that has points derives from ``Tapped`` and passes each through ``self.tap(name, x)``. With no listener that
returns x: no wrapper module, no graph node, no recompilation. ``tapped(model, ...)`` sets listeners on the modules that
own a wanted point, for the thread that opens it, so a model may serve several threads that listen to different things.

Compiled blocks: equal blocks that are asked alike share one compilation. An edit that is an ``nn.Module`` is compiled
into the block, its buffers are inputs of the graph, and another module of its class runs the same graph. An edit that
is a plain function would be compiled once for each function, and ``keep="all"`` once for each forward. A block that is
asked for either runs its plain code instead while somebody listens. Listeners of compiled blocks are a thread's own as
well, but threads have to call these in turn: torch itself (2.13) loses track where two compiled calls overlap.
"""

from pellucid.taps.listener import Activations as Activations
from pellucid.taps.listener import Edit as Edit
from pellucid.taps.listener import Keep as Keep
from pellucid.taps.listening import tapped as tapped
from pellucid.taps.points import Tapped as Tapped
from pellucid.taps.points import heard as heard
from pellucid.taps.points import name_points as name_points
from pellucid.taps.points import point_axes as point_axes
