"""Loops over active cells, for `probing.statistics.kernels`.

Upsampled values are computed in float64 as `a + weight * (b - a)`: exact where both cells are equal, so that a plateau
at the threshold never rises above it by rounding.
"""

from typing import Any

import numpy as np


def find_active(
    maps: Any,
    thresholds: Any,
    row: Any,
    row_weight: Any,
    column_weight: Any,
    column_first: Any,
    starts: Any,
    pixels: Any,
) -> int:
    """Write where upsampled maps exceed their thresholds, and return how many places that are.

    Unit u's places are `pixels[starts[u]:starts[u + 1]]`, counted row by row. Where there are more than `pixels` has
    room for, the rest is only counted.

    Args:
        maps: [units, h, w].
        thresholds: [units], in float64.
        row: the cell above or at each row of label cells, [H]; `row_weight` is the share of the one below.
        row_weight: as said.
        column_weight: the same along columns, [W].
        column_first: the first column of label cells that lies between each cell and the next, [w + 1].
        starts: [units + 1], written.
        pixels: written.
    """
    units, height, width = maps.shape
    columns = column_weight.shape[0]
    line = np.empty(width + 1, np.float64)
    top = np.empty(height, np.float64)
    found = 0
    for u in range(units):
        starts[u] = found
        threshold = thresholds[u]
        highest = -np.inf
        for y in range(height):
            value = maps[u, y, 0]
            for x in range(1, width):
                value = max(value, maps[u, y, x])
            top[y] = value
            highest = max(highest, top[y])
        if highest <= threshold:
            continue
        for i in range(row.shape[0]):
            above, below = row[i], min(row[i] + 1, height - 1)
            if top[above] <= threshold and top[below] <= threshold:
                continue
            for x in range(width):
                a, b = np.float64(maps[u, above, x]), np.float64(maps[u, below, x])
                line[x] = a + row_weight[i] * (b - a)
            line[width] = line[width - 1]
            for x in range(width):
                a, b = line[x], line[x + 1]
                if a <= threshold and b <= threshold:
                    continue
                for j in range(column_first[x], column_first[x + 1]):
                    if a + column_weight[j] * (b - a) > threshold:
                        if found < pixels.shape[0]:
                            pixels[found] = i * columns + j
                        found += 1
    starts[units] = found
    return found


def count_shared(starts: Any, pixels: Any, planes: Any, kind_of: Any, shared: Any, touched: Any) -> None:
    """Count, per unit and label, the active cells that have the label.

    Args:
        starts: [units + 1].
        pixels: as `find_active` writes them.
        planes: [planes, cells]; no cell has a label twice.
        kind_of: the category of each label, [labels + 1].
        shared: [units, labels + 1], added to.
        touched: [units, kinds], set where an active cell has a label of the category.
    """
    for u in range(starts.shape[0] - 1):
        for k in range(starts[u], starts[u + 1]):
            for plane in range(planes.shape[0]):
                label = planes[plane, pixels[k]]
                if label > 0:
                    shared[u, label] += 1
                    touched[u, kind_of[label]] = True


def count_permuted(
    offsets: Any,
    starts: Any,
    pixels: Any,
    planes: Any,
    whole: Any,
    kind_of: Any,
    order: Any,
    shared: Any,
    area: Any,
) -> None:
    """Count shared cells with the labels of other images, and the units' areas where they touch a category.

    Args:
        offsets: where each image's places begin in `pixels`, [images].
        starts: [images, units + 1], within an image.
        pixels: of all images.
        planes: [images, planes, cells]; 0 is none.
        whole: [images, most], the labels of whole images; 0 is none.
        kind_of: the category of each label.
        order: whose labels image i gets.
        shared: [units, labels + 1], added to.
        area: [units, kinds], to which the unit's active cells are added in images where they touch the category.
    """
    touched = np.zeros(area.shape[1], np.bool_)
    for i in range(order.shape[0]):
        of = order[i]
        for u in range(starts.shape[1] - 1):
            begin, end = offsets[i] + starts[i, u], offsets[i] + starts[i, u + 1]
            if begin == end:
                continue
            touched[:] = False
            for k in range(whole.shape[1]):
                label = whole[of, k]
                if label > 0:
                    shared[u, label] += end - begin
                    touched[kind_of[label]] = True
            for k in range(begin, end):
                for plane in range(planes.shape[1]):
                    label = planes[of, plane, pixels[k]]
                    if label > 0:
                        shared[u, label] += 1
                        touched[kind_of[label]] = True
            for kind in range(touched.shape[0]):
                if touched[kind]:
                    area[u, kind] += end - begin


def project(
    planes: Any,
    place: Any,
    row: Any,
    row_weight: Any,
    column: Any,
    column_weight: Any,
    projected: Any,
) -> None:
    """Add to each cell of a layer's map how much of each label lies at it.

    This is the transpose of upsampling: the sum of an upsampled map over a label's cells is the map's product with
    the projected label.

    Args:
        planes: [planes, H, W].
        place: where each label's projection stands, [labels + 1]; negative if it is not wanted.
        row: as in `find_active`.
        row_weight: as in `find_active`.
        column: as in `find_active`.
        column_weight: as in `find_active`.
        projected: [places, h, w], added to.
    """
    _, height, width = projected.shape
    for plane in range(planes.shape[0]):
        for i in range(planes.shape[1]):
            above, below, low = row[i], min(row[i] + 1, height - 1), row_weight[i]
            for j in range(planes.shape[2]):
                label = planes[plane, i, j]
                if label == 0 or place[label] < 0:
                    continue
                at = place[label]
                left, right = column[j], min(column[j] + 1, width - 1)
                aside = column_weight[j]
                projected[at, above, left] += (1 - low) * (1 - aside)
                projected[at, above, right] += (1 - low) * aside
                projected[at, below, left] += low * (1 - aside)
                projected[at, below, right] += low * aside


def sum_squares(maps: Any, rows: Any, beside: Any, columns: Any, aside: Any, squares: Any) -> None:
    """Write the sum of squares of each upsampled map.

    It is the map's quadratic form with two matrices, one along rows and one along columns, that have nothing off
    their diagonals but next to them, since upsampling mixes neighbours only.

    Args:
        maps: [n, units, h, w].
        rows: the diagonal of the matrix along rows, [h].
        beside: what stands next to it, [h - 1].
        columns: the same along columns, [w].
        aside: what stands next to it, [w - 1].
        squares: [n, units], written.
    """
    count, units, height, width = maps.shape
    for n in range(count):
        for u in range(units):
            total = 0.0
            for i in range(height):
                for j in range(width):
                    value = np.float64(maps[n, u, i, j])
                    total += rows[i] * columns[j] * value * value
                    if j + 1 < width:
                        total += 2 * rows[i] * aside[j] * value * maps[n, u, i, j + 1]
                    if i + 1 < height:
                        total += 2 * beside[i] * columns[j] * value * maps[n, u, i + 1, j]
                        if j + 1 < width:
                            across = value * maps[n, u, i + 1, j + 1]
                            across += np.float64(maps[n, u, i + 1, j]) * maps[n, u, i, j + 1]
                            total += 2 * beside[i] * aside[j] * across
            squares[n, u] = total


def add_precisions(order: Any, last: Any, starts: Any, concepts: Any, hits: Any, precisions: Any) -> None:
    """Add, per concept, the precision at each image that shows it, when images are gone through from the highest.

    Args:
        order: images from the highest score to the lowest, [n].
        last: for each place in the order, the last place of an equal score, [n].
        starts: where each image's concepts begin in `concepts`, [n + 1].
        concepts: that images show.
        hits: [concepts], zeros, written: how many images show each.
        precisions: [concepts], added to.
    """
    first = 0
    while first < order.shape[0]:
        end = last[first] + 1
        for k in range(first, end):
            for at in range(starts[order[k]], starts[order[k] + 1]):
                hits[concepts[at]] += 1
        for k in range(first, end):
            for at in range(starts[order[k]], starts[order[k] + 1]):
                precisions[concepts[at]] += hits[concepts[at]] / end
        first = end
