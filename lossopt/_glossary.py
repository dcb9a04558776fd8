"""What other libraries call the members of ours, and what to take where they have no name here.

One table makes the message of a missing attribute and the page docs/glossary.md.
"""

from lossopt._glossary_of_losses import LOSSES
from lossopt._glossary_of_sweeps import SWEEPS

TABLE = {
    "lossopt": {
        "gradient accumulation, microbatching": "lossopt.value_and_grad(microbatches=), exact for "
        "ragged masks, or lossopt.transforms.accumulate for microbatches that come one by one",
        "mini-batch, batch size, epochs, train loop, trainer": "lossopt.fit(batch_size=, epochs=)",
        "data parallel, DDP, multi-GPU, distributed, FSDP, ZeRO, sharding": "lossopt.fit(mesh=, "
        "partition=), and lossopt.train_step, which takes axis_name= inside of a map "
        "(docs/devices.md)",
        "mixed precision, AMP, autocast, bf16, fp16": "a cast in the objective "
        "(docs/own_loop.md#float32-parameters-computed-in-bfloat16), or bfloat16 parameters and "
        "lossopt.transforms.stochastic_rounding (docs/transforms.md#bfloat16-parameters)",
        "loss scaling, grad scaler": "bfloat16 instead of float16: it needs no scaling",
        "mask, padding, sample weight, reduction": "lossopt.mean(values, weights)",
        "regularization, penalty": "lossopt.constant of the value of a regularizer, such as "
        "lossopt.regularizers.L2, as a term of the objective",
        "multi-task, loss weights, total loss": "one lossopt.mean for each term, times its weight",
        "class weight, class weights, imbalanced": "the weights of lossopt.mean "
        "(docs/recipes.md#class-weights-and-pos_weight)",
        "metrics, accuracy, top-k": "lossopt.mean of what is counted (docs/recipes.md#metrics)",
        "perplexity": "jax.numpy.exp of the value (docs/recipes.md#a-large-vocabulary)",
        "batch norm, batch statistics, model state": "the keyword model_state of an objective "
        "(docs/models.md)",
        "dropout, noise, rng": "the keyword key of an objective (docs/objectives.md#keys)",
        "large vocabulary, memory-efficient cross entropy": "lossopt.fused."
        "linear_softmax_cross_entropy",
        "predict, inference": "lossopt.training.predict (docs/models.md#predictions)",
        "minimize, scipy.optimize, curve fit": "optax.lbfgs "
        "(docs/recipes.md#l-bfgs-for-a-curve-fit)",
        "hyperparameter search, grid search, tuner, Optuna, Ray Tune": "lossopt.sweep",
        "float64, double precision": "jax.enable_x64 (docs/recipes.md#float64)",
    },
    "lossopt.losses": LOSSES,
    "lossopt.fused": {
        "linear cross entropy, fused linear cross entropy, fused cross entropy, chunked cross "
        "entropy, cut cross entropy, sampled softmax": "lossopt.fused.linear_softmax_cross_entropy",
        "log-probs, token log-probs": "lossopt.fused.sequence_log_probs",
        "token entropy": "lossopt.fused.sequence_log_probs(entropy=)",
        "GradCache, gradient cache": "lossopt.fused.cached_value_and_grad",
    },
    "lossopt.regularizers": {
        "lasso, sparsity": "lossopt.regularizers.L1, as regularizer= of a rule for exact zeros "
        "(docs/transforms.md#exact-zeros)",
        "ridge, Tikhonov": "lossopt.regularizers.L2",
        "L1L2": "lossopt.regularizers.ElasticNet",
        "trace norm, low rank": "lossopt.regularizers.Nuclear",
        "TV, fused lasso": "lossopt.regularizers.TotalVariation",
        "max norm": "lossopt.regularizers.L2Ball(axis=)",
        "non-neg": "lossopt.regularizers.NonNegative",
        "clamp, projection, projection_box": "lossopt.regularizers.Box, by its prox",
        "probability simplex, projection_simplex": "lossopt.regularizers.Simplex, by its prox",
    },
    "lossopt.schedules": {
        "cosine decay, cosine annealing": "lossopt.schedules.cosine(end=)",
        "cosine annealing warm restarts, cosine decay restarts, SGDR": "lossopt.schedules."
        "cosine_restarts",
        "warmup cosine decay, linear warmup": "lossopt.schedules.warmup around another schedule",
        "cosine one-cycle": "lossopt.schedules.one_cycle",
        "exponential decay": "lossopt.schedules.exponential (docs/schedules.md)",
        "polynomial decay": "lossopt.schedules.polynomial",
        "multi-step, piecewise constant, piecewise constant decay, sequential, join "
        "schedules": "lossopt.schedules.join",
        "cyclic": "lossopt.schedules.triangular",
        "WSD, warmup stable decay": "lossopt.schedules.trapezoid",
        "Noam, rsqrt": "lossopt.schedules.inverse_sqrt, inside of lossopt.schedules.warmup",
        "lambda": "a function of your own from the count to the number",
    },
    "lossopt.transforms": {
        "AdamW, decoupled weight decay": "lossopt.transforms.adam(weight_decay=)",
        "weight decay": "lossopt.transforms.adam(weight_decay=), decoupled, or "
        "lossopt.regularizers.L2 in the objective (docs/transforms.md#weight-decay)",
        "no-decay": "lossopt.transforms.adam(weight_decay_where=)",
        "gradient descent": "lossopt.transforms.sgd",
        "heavy ball": "lossopt.transforms.momentum",
        "Nesterov, NAG": "lossopt.transforms.momentum(nesterov=True)",
        "NAdam": "lossopt.transforms.adam(nesterov=True)",
        "8-bit Adam, Adam 8-bit": 'lossopt.transforms.adam(moments="int8")',
        "ISTA, proximal gradient, projected gradient": "lossopt.transforms.sgd(regularizer=)",
        "gradient clipping, clip grad norm": "lossopt.transforms.clip_by_global_norm",
        "clip, clip grad value": "optax.clip",
        "MultiSteps": "lossopt.fit(microbatches=), or lossopt.transforms.accumulate by hand",
        "ReduceLROnPlateau": "lossopt.transforms.reduce_on_plateau",
        "apply if finite, skip not finite, NaN guard": "lossopt.transforms.skip_spikes",
        "EMA, exponential moving average, Polyak averaging, SWA, AveragedModel": (
            "lossopt.transforms.average; optax.ema is one of the updates"
        ),
        "parameter groups": "lossopt.transforms.scale_by_path for rates that differ by a factor, "
        "optax.partition for rules that differ",
        "layer-wise learning rates, discriminative learning rates, learning rate multiplier, LLRD, "
        "muP": "lossopt.transforms.scale_by_path (docs/transforms.md#rates-by-layer)",
        "freeze layers, frozen": "lossopt.transforms.scale_by_path with a factor of 0; "
        "optax.partition with optax.set_to_zero keeps no state for them",
        "L-BFGS, BFGS": "optax.lbfgs (docs/recipes.md#l-bfgs-for-a-curve-fit)",
        "Muon": "optax.contrib.muon",
        "Prodigy": "optax.contrib.prodigy",
        "schedule-free": "optax.contrib.schedule_free",
        "lookahead": "a loop of your own: optax.lookahead keeps two sets of parameters",
    },
    "lossopt.training": {
        "learning rate finder, LR finder, lr_find": "lossopt.training.find_learning_rate",
        "train": "lossopt.fit, or lossopt.training.run under jax.jit",
        "early stopping, save best": "lossopt.fit(stop=, best=), and best_params of the run "
        "(docs/training.md#when-a-run-ends)",
        "terminate on NaN, detect anomaly": "stopped_at of the run of lossopt.fit",
        "max steps, max iter, eval steps": "lossopt.fit(steps=, evaluate_every=)",
        "callbacks, history, progress bar": "lossopt.fit(on_epoch=), and the history of a run",
        "data loader, dataset": "arrays with a leading axis of rows: lossopt.fit(batch_size=)",
        "train test split, hold out": "lossopt.training.split, or lossopt.fit(validation=)",
        "custom loop, TrainState": "lossopt.train_step (docs/own_loop.md)",
    },
    "lossopt.parallel": {
        "data parallel, DDP, distributed data parallel, FSDP, fully sharded data parallel, ZeRO, "
        "ZeRO-1, ZeRO-3, fully shard": "lossopt.fit(mesh=, partition=) or "
        "lossopt.train_step(mesh=, partition=)",
        "device mesh, make mesh, init device mesh, num devices": "lossopt.parallel.mesh",
        "tensor parallel, model parallel, partition rules, logical axis rules, NamedSharding": (
            "lossopt.parallel.shardings(rules=), and the same rules in lossopt.train_step(rules=)"
        ),
        "pmap": "jax.pmap of the step of lossopt.train_step(axis_name=), with "
        "lossopt.parallel.replicate and lossopt.parallel.split",
        "device_put_replicated": "lossopt.parallel.replicate",
        "unreplicate": "the first of each leaf, jax.tree.map(lambda x: x[0], tree)",
        "device_put_sharded, shard, shard batch, scatter": "lossopt.parallel.split",
        "pad, pad shard unpad, drop remainder, drop last": "lossopt.parallel.pad_batch, where rows "
        "must divide: those of lossopt.train_step(mesh=) need not",
        "all gather": "lossopt.parallel.gathered",
        "init process group, distributed initialize, multi-host, multi-node, torchrun, SLURM": (
            "lossopt.parallel.initialize (docs/processes.md)"
        ),
        "distributed sampler, host local array to global array, "
        "make array from process local data": "lossopt.parallel.global_batch",
        "elastic, fault tolerance, preemption": "lossopt.parallel.guard and "
        "lossopt.fit(checkpoint=) (docs/processes.md#when-a-process-dies)",
    },
    "lossopt.sweeps": SWEEPS,
    "lossopt.plots": {
        "learning curve, training curve": "lossopt.plots.loss_curves",
        "parallel coordinates, heat map, slice, contour, optimization history": "lossopt.plots."
        "sweep",
    },
    "lossopt.checkpoint": {
        "save, load, restore, checkpoint manager, model checkpoint, Orbax": "lossopt.checkpoint."
        "Checkpoints",
    },
    "lossopt.testing": {
        "gradcheck, check grads, finite differences": "lossopt.testing.check_gradient",
    },
}
