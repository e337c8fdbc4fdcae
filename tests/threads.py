"""Threads that start together, for the tests."""

import threading

THREADS = 8


def at_once(work):
    """Run ``work(index)`` in eight threads that start together; return what each returned."""
    together = threading.Barrier(THREADS)
    results, errors = [None] * THREADS, []

    def run(index):
        try:
            together.wait()
            results[index] = work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
