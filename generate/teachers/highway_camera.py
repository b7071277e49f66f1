"""Bird's-eye pictures of a highway-env world, drawn without any display.

highway-env's own viewer initialises a display and draws nothing under ``SDL_VIDEODRIVER=dummy``; so its
drawing functions for lanes and vehicles are called on plain surfaces here. The road is drawn once per
stretch and the vehicles on top of it in every frame, at three times the size, then averaged down.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEIGHT_PX, WIDTH_PX = 64, 128
PX_PER_M = 1.6
_OVERSAMPLE = 3
_GRASS, _ASPHALT = (86, 110, 78), (96, 96, 100)
_STEP_M = 3.0


class BevCamera:
    """A camera straight above the ego vehicle of one rollout; x points right, y down, 1.6 pixels a metre."""

    def __init__(self, env: Any) -> None:
        import pygame
        from highway_env.road.graphics import WorldSurface

        self._env = env
        self._scale = PX_PER_M * _OVERSAMPLE
        size = (WIDTH_PX * _OVERSAMPLE, HEIGHT_PX * _OVERSAMPLE)
        self._frame = WorldSurface(size, 0, pygame.Surface(size))
        # three frames wide and two high: a rollout along a straight road needs the road drawn twice or so
        ground = (3 * size[0], 2 * size[1])
        self._ground = WorldSurface(ground, 0, pygame.Surface(ground))
        self._frame.scaling = self._ground.scaling = self._scale
        self._ground_drawn = False

    def picture(self) -> NDArray[np.uint8]:
        """Draw the world as it is now: uint8 [HEIGHT_PX, WIDTH_PX, 3], RGB, the ego in the middle."""
        import pygame
        from highway_env.road.graphics import RoadGraphics

        corner = self._corner()
        if not self._ground_drawn or not self._covers(corner):
            self._draw_ground(corner)
            corner = self._corner()
        frame, road = self._frame, self._env.road
        frame.origin = self._ground.origin + np.array(corner) / self._scale
        frame.blit(self._ground, (0, 0), (*corner, *frame.get_size()))
        RoadGraphics.display_road_objects(road, frame, offscreen=True)
        RoadGraphics.display_traffic(road, frame, offscreen=True)
        fine = pygame.surfarray.array3d(frame).swapaxes(0, 1)  # [width, height, RGB] to rows first
        blocks = fine.reshape(HEIGHT_PX, _OVERSAMPLE, WIDTH_PX, _OVERSAMPLE, 3)
        mean: NDArray[np.uint8] = (blocks.sum(axis=(1, 3), dtype=np.uint16) // _OVERSAMPLE**2).astype(np.uint8)
        return mean

    def _corner(self) -> tuple[int, int]:
        """Return the pixel of the ground picture at which the frame around the ego starts."""
        half = np.array(self._frame.get_size()) / 2
        x, y = (self._env.vehicle.position - self._ground.origin) * self._scale - half
        return math.floor(x), math.floor(y)

    def _covers(self, corner: tuple[int, int]) -> bool:
        inside = zip(corner, self._frame.get_size(), self._ground.get_size(), strict=True)
        return all(c >= 0 and c + frame <= ground for c, frame, ground in inside)

    def _draw_ground(self, corner: tuple[int, int]) -> None:
        """Draw the road around the ego and place the frame in the middle of it."""
        import pygame
        from highway_env.road.graphics import LaneGraphics

        ground = self._ground
        spare = (np.array(ground.get_size()) - np.array(self._frame.get_size())) // 2
        # whole pixels, so that the road stands still on the picture's grid whenever it is drawn again
        ground.origin = ground.origin + (np.array(corner) - spare) / self._scale
        self._ground_drawn = True
        ground.fill(_GRASS)
        lanes = self._env.road.network.lanes_list()
        for lane in lanes:
            outline = self._outline(lane)
            if len(outline) > 2:
                pygame.draw.polygon(ground, _ASPHALT, outline)
        for lane in lanes:
            LaneGraphics.display(lane, ground)

    def _outline(self, lane: Any) -> list[tuple[int, int]]:
        """Return a lane's border as pixels of the ground picture, as far as it can be seen."""
        reach = 1.2 * max(self._ground.get_size()) / self._scale
        middle, _ = lane.local_coordinates(self._ground.origin + np.array(self._ground.get_size()) / 2 / self._scale)
        start, end = (float(np.clip(middle + d, 0.0, lane.length)) for d in (-reach, reach))
        places = np.linspace(start, end, max(2, math.ceil((end - start) / _STEP_M)))
        left = [lane.position(s, -lane.width_at(s) / 2) for s in places]
        right = [lane.position(s, lane.width_at(s) / 2) for s in reversed(places)]
        return [self._ground.vec2pix(p) for p in [*left, *right]]
