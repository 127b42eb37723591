def init():
    pass


def run_batch(data):
    return data
