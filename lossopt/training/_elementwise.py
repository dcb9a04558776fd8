def elementwise(rule, params, state):
    return
