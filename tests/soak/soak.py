#!/usr/bin/env python3
"""A server at saturation for minutes, by clients that do what clients do; is it the same afterwards?

    quire serve MODEL --skip-tokenizer-init --step-log steps.csv ... &
    tests/soak/soak.py --port 8000 --pid $! --seconds 600 --clients 300
    tests/soak/steps.py steps.csv

A closed loop of clients on /v1/completions: prompts of token ids whose lengths are spread evenly over
magnitudes (many short, few long), some with a beginning that others share; answers of random lengths;
greedy or drawn, top_p, penalties, logprobs, n of 2; most streamed. Some leave after a few events, some
close at once, some never read until they close. Every other reply must be whole: status 200, one id,
well-formed events, the exact number of tokens in usage and in token_ids, one end for each choice,
[DONE], and the end of the body. A few fixed requests with a temperature of 0 or a seed come again and
again: the tokens must be the first answer's, whatever else is in their steps.

Once a second: /metrics, the process's memory, the GPU's memory. Exit code 0: every reply was whole, and
at the end nothing runs, waits or holds a block, memory did not grow by more than --growth-mib after the
first minute, and the mean waste of the KV cache was below --waste while more than half of it was used.

Python 3, standard library alone. Several processes, so that the clients are not what is measured.
"""
import argparse
import asyncio
import json
import math
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import urllib.request

COUNTS = ('ok', 'left', 'bad', 'probes', 'tokens')
REPLY_SECONDS = 180  # no answer for that long is a failure
BAD_SHOWN = 5  # by each process


class Bad(Exception):
    """A reply that is not what it must be."""


# ---- requests ----

def prompt_ids(rng, length, options):
    return [rng.randrange(options.token_low, options.token_high) for _ in range(length)]


def make_request(rng, options):
    """A random request."""
    length = int(math.exp(rng.uniform(math.log(options.prompt_least), math.log(options.prompt_most + 1))))
    prompt = prompt_ids(rng, length, options)
    if rng.random() < 0.2:  # some prompts begin alike
        shared = prompt_ids(random.Random(rng.randrange(4)), length // 2, options)
        prompt[:len(shared)] = shared
    body = {'model': options.model, 'prompt': prompt, 'max_tokens': rng.randint(1, options.output_most),
            'temperature': rng.choice((0, 1)), 'ignore_eos': True, 'stream': rng.random() < 0.8}
    if rng.random() < 0.5:
        body['return_token_ids'] = True
    if rng.random() < 0.1:
        body['logprobs'] = rng.randint(0, 5)
    if rng.random() < 0.1:
        body['n'] = 2
    if rng.random() < 0.2:
        body['top_p'] = 0.9
    if rng.random() < 0.1:
        body[rng.choice(('frequency_penalty', 'presence_penalty'))] = 0.5
    return body


def make_probe(index, options):
    """One of a few fixed requests: its answer must never change."""
    rng = random.Random(1000 + index)
    body = {'model': options.model, 'prompt': prompt_ids(rng, 20 + 90 * index, options), 'max_tokens': 60,
            'temperature': index % 2, 'seed': index, 'ignore_eos': True, 'stream': True,
            'return_token_ids': True}
    if index % 3 == 2:
        body['frequency_penalty'] = 0.7
    return body


# ---- replies ----

class Reply:
    """What a reply must be; takes its choices as they come."""

    def __init__(self, body):
        self.body = body
        self.want = body['max_tokens'] * body.get('n', 1)
        self.id = None
        self.finished = {}
        self.tokens = {}  # by choice
        self.usage = None

    def take(self, event):
        """A whole reply, or an event of a stream."""
        if 'error' in event:
            raise Bad('error: %s' % json.dumps(event['error'])[:300])
        if self.id is None:
            self.id = event['id']
        if event['id'] != self.id:
            raise Bad('the id %s became %s' % (self.id, event['id']))
        for choice in event['choices']:
            index = choice['index']
            if index in self.finished:
                raise Bad('choice %d goes on behind its end' % index)
            self.tokens.setdefault(index, []).extend(choice.get('token_ids') or [])
            if choice['finish_reason'] is not None:
                self.finished[index] = choice['finish_reason']
        if event.get('usage'):
            if self.usage is not None:
                raise Bad('usage came twice')
            self.usage = event['usage']

    def check(self):
        """All of it is here."""
        n = self.body.get('n', 1)
        if self.finished != {i: 'length' for i in range(n)}:
            raise Bad('ends %s for n of %d' % (self.finished, n))
        if self.usage is None or self.usage['completion_tokens'] != self.want or \
                self.usage['prompt_tokens'] != len(self.body['prompt']):
            raise Bad('usage %s, asked for %d behind %d' % (self.usage, self.want, len(self.body['prompt'])))
        if self.body.get('return_token_ids'):
            for i in range(n):
                if len(self.tokens[i]) != self.body['max_tokens']:
                    raise Bad('%d token_ids, not %d' % (len(self.tokens[i]), self.body['max_tokens']))


async def send(body, options, part=1.0):
    """Sends a request, or the first part of it."""
    if body['stream']:
        body['stream_options'] = {'include_usage': True}
    text = json.dumps(body).encode()
    head = ('POST /v1/completions HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\n'
            'Content-Length: %d\r\nConnection: close\r\n%s\r\n' %
            (options.host, len(text), 'Authorization: Bearer %s\r\n' % options.key if options.key else ''))
    reader, writer = await asyncio.open_connection(options.host, options.port, limit=1 << 20)
    data = head.encode() + text
    writer.write(data[:max(1, int(len(data) * part))])
    return reader, writer


async def read_more(reader):
    return await asyncio.wait_for(reader.read(1 << 18), REPLY_SECONDS)


async def read_head(reader):
    data = b''
    while b'\r\n\r\n' not in data:
        more = await read_more(reader)
        if not more:
            raise Bad('the connection ended within the head: %r' % data[:200])
        data += more
    head, rest = data.split(b'\r\n\r\n', 1)
    if head.split(b' ', 2)[1] != b'200':
        raise Bad('%r %r' % (head.split(b'\r\n')[0], rest[:300]))
    return rest


async def read_stream(reader, reply, event_most):
    """Takes events until the end, or until event_most came: then False."""
    data = await read_head(reader)
    done, count = False, 0
    while True:
        event, mark, rest = data.partition(b'\n\n')
        if not mark:
            more = await read_more(reader)
            if not more:
                break
            data += more
            continue
        data = rest
        at = event.find(b'data: ')  # the chunk's size stands in front of it
        if at < 0 or done:
            raise Bad('no event: %r' % event[:200])
        if event[at + 6:] == b'[DONE]':
            done = True
            continue
        reply.take(json.loads(event[at + 6:]))
        count += 1
        if event_most is not None and count >= event_most:
            return False
    if not done or not data.endswith(b'0\r\n\r\n'):
        raise Bad('the stream was cut off: %r' % data[-200:])
    return True


async def read_whole(reader, reply):
    data = await read_head(reader)
    while True:
        more = await read_more(reader)
        if not more:
            break
        data += more
    reply.take(json.loads(data))


async def ask(body, options, event_most=None):
    """The whole reply, checked; None: left after event_most events."""
    reply = Reply(body)
    reader, writer = await send(body, options)
    try:
        if not body['stream']:
            await read_whole(reader, reply)
        elif not await read_stream(reader, reply, event_most):
            return None
        reply.check()
        return reply
    finally:
        writer.close()


# ---- what clients do ----

async def close_at_once(rng, body, options):
    _, writer = await send(body, options, rng.choice((0.02, 0.5, 1.0, 1.0)))
    if rng.random() < 0.5:
        await writer.drain()
    writer.transport.abort() if rng.random() < 0.5 else writer.close()


async def never_read(rng, body, options):
    body['stream'] = True
    _, writer = await send(body, options)
    writer.transport.pause_reading()
    await asyncio.sleep(rng.uniform(0.1, 5))
    writer.transport.abort() if rng.random() < 0.5 else writer.close()


async def one(rng, options, known):
    """One client's one request: what became of it, and the tokens that came whole."""
    fate = rng.random()
    if fate < 0.05:
        await close_at_once(rng, make_request(rng, options), options)
        return 'left', 0
    if fate < 0.10:
        await never_read(rng, make_request(rng, options), options)
        return 'left', 0
    if fate < 0.25:
        body = make_request(rng, options)
        body['stream'] = True
        reply = await ask(body, options, rng.randint(1, 100))
        return ('left', 0) if reply is None else ('ok', reply.want)
    if fate < 0.28:
        index = rng.randrange(8)
        reply = await ask(make_probe(index, options), options)
        if known.setdefault(index, reply.tokens) != reply.tokens:
            raise Bad('fixed request %d got other tokens than at first' % index)
        return 'probes', reply.want
    reply = await ask(make_request(rng, options), options)
    return 'ok', reply.want


async def client(seed, options, end, count, known):
    rng = random.Random(seed)
    while time.time() < end:
        try:
            what, tokens = await one(rng, options, known)
            count(what, 1)
            count('tokens', tokens)
        except Exception as error:  # pylint: disable=broad-except
            count('bad', 1)
            if count('bad', 0) <= BAD_SHOWN:
                print('BAD %s: %s' % (type(error).__name__, error), flush=True)
            await asyncio.sleep(0.5)


def work(index, options, end, counts):
    """A process of clients."""
    def count(what, amount):
        cell = index * len(COUNTS) + COUNTS.index(what)
        counts[cell] += amount
        return counts[cell]

    async def main():
        seeds = range(index, options.clients, options.processes)
        known = {}
        await asyncio.gather(*[client(options.seed * 100003 + i, options, end, count, known) for i in seeds])

    asyncio.run(main())


async def warm_up(options):
    """Every slot is used, with all that a slot can hold, before anything is measured."""
    rng = random.Random(7)
    for _ in range(2):
        bodies = [{'model': options.model, 'prompt': prompt_ids(rng, 390, options), 'max_tokens': 60,
                   'ignore_eos': True, 'stream': True, 'temperature': 1, 'top_p': 0.9,
                   'frequency_penalty': 0.5, 'logprobs': 5} for _ in range(options.warm)]
        await asyncio.gather(*[ask(body, options) for body in bodies])


# ---- watching ----

class Watch(threading.Thread):
    """A sample a second, until `over` is set."""

    def __init__(self, options):
        super().__init__(daemon=True)
        self.options = options
        self.over = threading.Event()
        self.start_time = 0
        self.samples = []  # dicts
        self.device_mib = None
        self.metrics_seconds = 0
        self.failures = 0
        self.smi = None

    def watch_device(self):
        if shutil.which('nvidia-smi'):
            self.smi = subprocess.Popen(['nvidia-smi', '-i', str(self.options.gpu), '--query-gpu=memory.used',
                                         '--format=csv,noheader,nounits', '-l', '1'],
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            threading.Thread(target=self.read_smi, daemon=True).start()

    def read_smi(self):
        for line in self.smi.stdout:
            if line.strip().isdigit():
                self.device_mib = int(line)

    def metrics(self):
        request = urllib.request.Request('http://%s:%d/metrics?names=quire' % (self.options.host, self.options.port))
        if self.options.key:
            request.add_header('Authorization', 'Bearer ' + self.options.key)
        start = time.time()
        with urllib.request.urlopen(request, timeout=30) as reply:
            text = reply.read().decode()
        self.metrics_seconds = max(self.metrics_seconds, time.time() - start)
        return {name: float(value) for name, value in
                (line.rsplit(' ', 1) for line in text.splitlines() if line and line[0] != '#')}

    def rss_mib(self):
        try:
            with open('/proc/%d/status' % self.options.pid) as status:
                for line in status:
                    if line.startswith('VmRSS:'):
                        return int(line.split()[1]) / 1024
        except OSError:
            pass
        return None

    def sample(self):
        page = self.metrics()
        return {
            'time': time.time() - self.start_time,
            'rss': self.rss_mib() if self.options.pid else None,
            'device': self.device_mib,
            'running': page['quire_requests_running'],
            'waiting': page['quire_requests_waiting'],
            'usage': page['quire_kv_cache_usage_ratio'],
            'waste': page['quire_kv_waste_ratio'],
            'used': page['quire_kv_blocks{state="used"}'],
            'in_flight': page['quire_requests_in_flight'],
            'output': page['quire_generation_tokens_total'],
            'prompt': page['quire_prompt_tokens_total'],
            'steps': page['quire_engine_steps_total'],
            'preemptions': page['quire_preemptions_total'],
            'errors': page['quire_requests_total{endpoint="completions",finish_reason="error"}'],
        }

    def run(self):
        self.start_time = time.time()
        self.watch_device()
        while not self.over.wait(1):
            try:
                self.samples.append(self.sample())
            except OSError as error:
                self.failures += 1
                if self.failures <= BAD_SHOWN:
                    print('BAD /metrics: %s' % error, flush=True)

    def stop(self):
        self.over.set()
        self.join()
        if self.smi is not None:
            self.smi.terminate()


def mib(value):
    return '-' if value is None else '%.0f' % value


def line_of(first, last, counted):
    seconds = max(last['time'] - first['time'], 1e-3)
    return ('%5.0f s  ok %d left %d bad %d  out %.0f in %.0f tok/s  %.0f steps/s  running %.0f waiting %.0f  '
            'kv %.0f %% waste %.2f %%  rss %s MiB device %s MiB' %
            (last['time'], counted['ok'] + counted['probes'], counted['left'], counted['bad'],
             (last['output'] - first['output']) / seconds, (last['prompt'] - first['prompt']) / seconds,
             (last['steps'] - first['steps']) / seconds, last['running'], last['waiting'],
             100 * last['usage'], 100 * last['waste'], mib(last['rss']), mib(last['device'])))


def tell(watch, workers, counted, interval):
    """A line now and then until the workers end."""
    told = None
    while any(worker.is_alive() for worker in workers):
        time.sleep(0.2)
        if not watch.samples:
            continue
        now = watch.samples[-1]
        told = told or now
        if now['time'] - told['time'] >= interval:
            print(line_of(told, now, counted()), flush=True)
            told = now


# ---- the end ----

def await_rest(watch):
    """The sample once nothing runs, waits or holds a block; else the last one after 15 s."""
    for _ in range(60):
        sample = watch.sample()
        if not any(sample[name] for name in ('running', 'waiting', 'used', 'in_flight')):
            break
        time.sleep(0.25)
    return sample


def at(samples, seconds):
    return next((sample for sample in samples if sample['time'] >= seconds), samples[-1])


def verdict(watch, counts, options):
    """Prints what was seen; whether all was well."""
    faults, samples = [], watch.samples
    try:
        rest = await_rest(watch)
    except OSError as error:
        print('FAIL the server does not answer any more: %s' % error)
        return False
    if not samples:
        print('FAIL no sample was taken')
        return False
    if watch.failures:
        faults.append('/metrics did not answer %d times' % watch.failures)
    first, last = samples[0], samples[-1]
    early = at(samples, min(60, options.seconds / 2))
    print(line_of(first, last, counts))
    for name in ('rss', 'device'):
        values = [sample[name] for sample in samples if sample[name] is not None]
        if not values:
            continue
        print('%s MiB: first %.0f, at %.0f s %s, most %.0f, last %.0f, at rest %s' %
              (name, values[0], early['time'], mib(early[name]), max(values), values[-1], mib(rest[name])))
        if rest[name] is None or rest[name] - early[name] > options.growth_mib:
            faults.append('%s grew by %s MiB' % (name, mib((rest[name] or 0) - early[name])))
    full = [sample['waste'] for sample in samples if sample['usage'] > 0.5]
    if full:
        mean = sum(full) / len(full)
        print('kv waste while more than half was used: mean %.2f %%, most %.2f %%, %d samples' %
              (100 * mean, 100 * max(full), len(full)))
        if mean >= options.waste:
            faults.append('%.2f %% of the KV cache were wasted' % (100 * mean))
    else:
        print('kv waste: the cache was never half full')
    print('rest: running %.0f waiting %.0f blocks used %.0f in flight %.0f' %
          (rest['running'], rest['waiting'], rest['used'], rest['in_flight']))
    if any(rest[name] for name in ('running', 'waiting', 'used', 'in_flight')):
        faults.append('something is left')
    print('most: running %.0f waiting %.0f usage %.0f %%; preemptions %.0f; /metrics took %.0f ms at most' %
          (max(s['running'] for s in samples), max(s['waiting'] for s in samples),
           100 * max(s['usage'] for s in samples), rest['preemptions'], 1000 * watch.metrics_seconds))
    print('replies: ' + ' '.join('%s %d' % (name, counts[name]) for name in COUNTS))
    if counts['bad'] or rest['errors']:
        faults.append('%d bad replies, %.0f sequences ended by errors' % (counts['bad'], rest['errors']))
    if not counts['ok'] or not counts['probes']:
        faults.append('too short: no reply of each kind')
    for fault in faults:
        print('FAIL ' + fault)
    return not faults


def read_options():
    parser = argparse.ArgumentParser(description=__doc__.split('\n', maxsplit=1)[0])
    for name, value, text in (
            ('host', '127.0.0.1', 'of the server'), ('port', 8000, 'of the server'), ('model', 'm', 'served name'),
            ('key', '', 'API key'), ('pid', 0, 'of the server, to watch its memory'), ('gpu', 0, 'to watch'),
            ('seconds', 600.0, 'of load'), ('clients', 300, 'at once'), ('processes', 8, 'of clients'),
            ('warm', 0, 'streams at once before the measuring: as many as there are slots'),
            ('prompt-least', 16, 'tokens'), ('prompt-most', 2000, 'tokens'), ('output-most', 400, 'tokens'),
            ('token-low', 300, 'least id in prompts'), ('token-high', 8000, 'first id above them'),
            ('seed', 1, 'of all that is random'), ('interval', 30.0, 'seconds between lines'),
            ('growth-mib', 64.0, 'that memory may grow after a minute'), ('waste', 0.04, 'of the KV cache at most')):
        parser.add_argument('--' + name, type=type(value), default=value, help='%s (%s)' % (text, value or 'none'))
    options = parser.parse_args()
    options.processes = max(1, min(options.processes, options.clients))
    return options


def main():
    options = read_options()
    watch = Watch(options)
    try:
        watch.sample()
    except OSError as error:
        print('no answer from %s:%d: %s' % (options.host, options.port, error))
        return 1
    if options.warm:
        start = time.time()
        asyncio.run(warm_up(options))
        print('warm after %.1f s' % (time.time() - start), flush=True)
    cells = multiprocessing.Array('q', options.processes * len(COUNTS), lock=False)

    def counted():
        return {name: sum(cells[i::len(COUNTS)]) for i, name in enumerate(COUNTS)}

    end = time.time() + options.seconds
    workers = [multiprocessing.Process(target=work, args=(i, options, end, cells)) for i in range(options.processes)]
    for worker in workers:
        worker.start()
    watch.start()
    tell(watch, workers, counted, options.interval)
    watch.stop()
    good = all(worker.exitcode == 0 for worker in workers)
    good = verdict(watch, counted(), options) and good
    print('good' if good else 'not good')
    return 0 if good else 1


if __name__ == '__main__':
    sys.exit(main())
