#!/usr/bin/env python3
"""Which steps of a step log (quire serve --step-log) took more than twice the time that fits them, and why.

    tests/soak/steps.py steps.csv

The form that is fitted, for steps that replayed a graph and for those launched directly on their own:

    time = base(tokens of the step) + slopes * (prompts in it or none, positions attended to, rows of
                                                logits and kinds of them, slots taken, blocks copied)

`base` is piecewise linear and nowhere falling, with knots at magnitudes of tokens; no slope is negative.
Why it is sound: the products of a step read all weights whatever the tokens are, until there are enough
of them for arithmetic to bound them; so their time is flat first, then a line, with tiles and padded
sizes between: a maximum and not a sum, which any rising curve can follow and no line can. Attention
reads each position of a decode row's context once, and multiplies each of a prompt's tokens with each
position before it: a sum, whose parts are the two contexts of the log. Sampling is a pass over the
logits for each row, and more passes where penalties, draws or log-probabilities are asked for. The
coefficients are those of the least relative error, twice: the second time without what the first fit
missed by more than half, so that the steps in question do not make their own excuse. Steps that were
alone (their time holds the plan and the launch) and those that recorded a graph take no part.

Reasons are those that the log itself shows to be large enough for half of the excess: a graph that was
recorded; the host, which was late (wait_us is what is left of the time then), having computed or not
having had a processor; a launch far above its like, of this step or of the next one, as the thread that
launches asks for the end of the step before only then; a step that was alone. Or that the end was
noticed late: the next step, which is queued behind it, took next to nothing, so the device had done that one
too by then (for how much longer it had nothing to do cannot be seen, as no more than two are in flight). What has none of them is
printed as "no reason", and makes the exit code 1. So does a log with lines missing.

--time launch_us judges a server on a CPU, whose rank computes where others launch.
Python 3, standard library alone.
"""
import argparse
import csv
import statistics
import sys

SLOPES = ('mixed', 'decode_context', 'prompt_context', 'samples', 'drawn', 'penalised', 'logprobs', 'starts', 'moves')
KNOTS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192,
         12288, 16384, 32768, 65536)
FIT_MOST = 20000   # lines that make a fit
FIT_LEAST = 50     # fewer cannot
UNITS = 1e-6       # of a least-squares diagonal: keeps what never varies at 0


# ---- the log ----

def read_log(path):
    """Its last run, as dicts, and the lines that are missing in it."""
    steps, missing = [], 0
    with open(path, newline='') as file:
        for row in csv.DictReader(file):
            if None in row.values():
                break  # it was cut off
            step = {name: (value if name == 'launch' else float(value)) for name, value in row.items()}
            if steps and step['step'] <= steps[-1]['step']:
                steps, missing = [], 0  # the server was started again
            missing += int(step['step'] - (steps[-1]['step'] if steps else 0)) - 1
            step['mixed'] = float(step['prompt_tokens'] > 0)
            step['tokens'] = step['prompt_tokens'] + step['decode_rows']
            steps.append(step)
    return steps, missing


# ---- the fit ----

def features(step, knots):
    """The base's pieces, each from 0 to 1 between two knots, and the slopes' figures."""
    tokens, row = step['tokens'], [1.0]
    for low, high in zip(knots, knots[1:]):
        row.append(min(max((tokens - low) / (high - low), 0.0), 1.0))
    row.extend(step[name] for name in SLOPES)
    return row


def solve(rows, times, weights):
    """Coefficients from 0 up with the least weighted squares: by turns, each the best for the others."""
    count = len(rows[0])
    scale = [max(max(row[i] for row in rows), 1e-9) for i in range(count)]
    gram = [[0.0] * count for _ in range(count)]
    goal = [0.0] * count
    for row, time, weight in zip(rows, times, weights):
        live = [(i, value / scale[i]) for i, value in enumerate(row) if value]
        for k, (i, left) in enumerate(live):
            goal[i] += weight * left * time
            for j, right in live[k:]:
                gram[i][j] += weight * left * right
    for i in range(count):
        for j in range(i):
            gram[i][j] = gram[j][i]
        gram[i][i] += UNITS * (gram[0][0] or 1)
    found = [0.0] * count
    for _ in range(3000):
        moved = 0.0
        for i in range(count):
            rest = goal[i] - sum(map(float.__mul__, gram[i], found)) + gram[i][i] * found[i]
            best = max(rest / gram[i][i], 0.0)
            moved = max(moved, abs(best - found[i]))
            found[i] = best
        if moved < 1e-4 * max(found):
            break
    return [value / scale[i] for i, value in enumerate(found)]


class Fit:
    """Of one kind of steps."""

    def __init__(self, steps, column):
        self.column = column
        most = max(step['tokens'] for step in steps)
        least = min(step['tokens'] for step in steps)
        inside = [knot for knot in KNOTS if least < knot < most]
        self.knots = [least, *inside, most] if most > least else [least]
        chosen = steps[::max(1, len(steps) // FIT_MOST)]
        rows = [features(step, self.knots) for step in chosen]
        times = [max(step[column], 1.0) for step in chosen]
        self.found = solve(rows, times, [time ** -2 for time in times])
        guess = [self.time(step) for step in chosen]
        good = [i for i, fit in enumerate(guess) if fit / 1.5 < times[i] < fit * 1.5]
        if len(good) >= FIT_LEAST:
            self.found = solve([rows[i] for i in good], [times[i] for i in good], [guess[i] ** -2 for i in good])

    def time(self, step):
        return max(sum(map(float.__mul__, self.found, map(float, features(step, self.knots)))), 1.0)

    def tell(self, name, steps):
        off = sorted(abs(step[self.column] / self.time(step) - 1) for step in steps)
        print('%s: %d steps, off by %.0f %% in the middle, %.0f %% at nine in ten' %
              (name, len(steps), 100 * off[len(off) // 2], 100 * off[len(off) * 9 // 10]))
        value, points = self.found[0], []
        for knot, rise in zip(self.knots, [0.0, *self.found[1:len(self.knots)]]):
            value += rise
            points.append('%d: %.0f' % (knot, value))
        print('  base, us by tokens: ' + ', '.join(points))
        print('  slopes, us: ' + ', '.join('%s %.3g' % pair for pair in zip(SLOPES, self.found[len(self.knots):])))


# ---- reasons ----

def reason(step, following, fit_us, next_us, launches, column):
    """Why it is long, in words; None: nothing says. `launches`: the usual launch_us by kind; `next_us`: what fits
    the next step, or None."""
    excess = step[column] - fit_us
    host = step['duration_us'] - step['wait_us']
    if step['launch'] == 'recorded':
        return 'a graph was recorded'
    if column == 'launch_us':
        return None
    if host >= excess / 2:
        return 'the host computed' if step['busy_us'] >= host / 2 else 'the host had no processor'
    for whose, one in (('', step), (' of the next step', following)):
        if one is not None and one['launch_us'] >= max(excess / 2, 3 * launches['all']):
            if one['launch'] == 'recorded':
                return 'the recording of a graph' + whose
            if one['launch_us'] >= 3 * launches[one['launch']]:
                return 'a slow launch' + whose
    if next_us is not None and not following['alone'] and following['duration_us'] < next_us / 4:
        return 'the end was noticed late'
    return 'alone' if step['alone'] else None


def judge(steps, fits, options):
    """Prints the long steps; how many have no reason."""
    launches = {kind: statistics.median(step['launch_us'] for step in steps if step['launch'] == kind)
                for kind in {step['launch'] for step in steps}}
    launches['all'] = min(launches.values(), default=0)
    counted, unjudged, lines = {}, 0, []
    for step, following in zip(steps, [*steps[1:], None]):
        fit = fits.get('replayed' if step['launch'] == 'recorded' else step['launch'])
        if fit is None:
            unjudged += 1
            continue
        fit_us = fit.time(step)
        if step[options.time] <= options.factor * fit_us:
            continue
        next_fit = following and fits.get(following['launch'])
        why = reason(step, following, fit_us, next_fit and next_fit.time(following), launches, options.time)
        counted[why] = counted.get(why, 0) + 1
        lines.append((why is not None, -step[options.time], step, fit_us, why))
    lines.sort(key=lambda line: line[:2])
    for _, _, step, fit_us, why in lines[:options.show]:
        print('  step %d: %.0f us for %.0f (%s; %d prompt tokens, %d decode rows, context %d; '
              'waited %.0f, busy %.0f, launch %.0f; %d starts, %d moves): %s' %
              (step['step'], step[options.time], fit_us, step['launch'], step['prompt_tokens'],
               step['decode_rows'], step['prompt_context'] + step['decode_context'], step['wait_us'],
               step['busy_us'], step['launch_us'], step['starts'], step['moves'], why or 'no reason'))
    if len(lines) > options.show:
        print('  and %d more' % (len(lines) - options.show))
    print('longer than %g times the fit: %d of %d steps%s' % (options.factor, len(lines), len(steps), ''.join(
        '; %s: %d' % (why or 'no reason', count) for why, count in sorted(counted.items(), key=str))))
    if unjudged:
        print('too few of their kind to be judged: %d' % unjudged)
    return counted.get(None, 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n', maxsplit=1)[0])
    parser.add_argument('log')
    parser.add_argument('--factor', type=float, default=2, help='of the fit that is too long (2)')
    parser.add_argument('--show', type=int, default=40, help='long steps to print (40)')
    parser.add_argument('--time', default='duration_us', help='the column that is the time (duration_us)')
    options = parser.parse_args()
    steps, missing = read_log(options.log)
    print('%d steps, %d lines missing, %d prompt tokens, %d decode rows' %
          (len(steps), missing, sum(s['prompt_tokens'] for s in steps), sum(s['decode_rows'] for s in steps)))
    fits = {}
    usual = [step for step in steps if not step['alone']] or steps
    for kind in ('replayed', 'direct'):
        alike = [step for step in usual if step['launch'] == kind]
        if len(alike) >= FIT_LEAST:
            fits[kind] = Fit(alike, options.time)
            fits[kind].tell(kind, alike)
    nameless = judge(steps, fits, options)
    return 1 if nameless or missing or not fits else 0


if __name__ == '__main__':
    sys.exit(main())
