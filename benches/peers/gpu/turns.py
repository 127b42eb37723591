"""Takes lines of a number of threads and one of calls, and answers each with the seconds in all and those of each call."""

import sys
import threading
import time


def take(call):
    for line in sys.stdin:
        threads, calls = map(int, line.split())
        times = [[] for _ in range(threads)]

        def work(own):
            for _ in range(calls):
                began = time.perf_counter()
                call()
                own.append(time.perf_counter() - began)

        began = time.perf_counter()
        workers = [threading.Thread(target=work, args=(own,)) for own in times]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        print(time.perf_counter() - began, *(each for own in times for each in own), flush=True)
