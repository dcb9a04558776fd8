"""What other libraries call the losses of ours; part of the one table."""

LOSSES = {
    "MSE, mean squared error, L2 loss": "lossopt.losses.squared_error, twice optax.l2_loss",
    "RMSE, root mean squared error": "jax.numpy.sqrt of the mean of "
    "lossopt.losses.squared_error, as a metric",
    "MAE, mean absolute error, L1 loss": "lossopt.losses.absolute_error",
    "MAPE, mean absolute percentage error": "lossopt.losses.absolute_percentage_error",
    "MSLE, mean squared logarithmic error, mean squared log error": "lossopt.losses."
    "squared_log_error",
    "smooth L1": "lossopt.losses.huber(delta=) divided by its delta",
    "pinball": "lossopt.losses.quantile(level=)",
    "cosine similarity, cosine embedding": "lossopt.losses.cosine_distance",
    "negative log-likelihood": "lossopt.losses.gaussian_nll, lossopt.losses.poisson_nll or "
    "lossopt.losses.gamma_nll; of classes lossopt.losses.softmax_cross_entropy",
    "poisson": "lossopt.losses.poisson_nll",
    "KL div, KLD, relative entropy": "lossopt.losses.kl_divergence, from logits",
    "JSD": "lossopt.losses.jensen_shannon",
    "partial likelihood, survival, Cox PH": "lossopt.losses.cox",
    "cross entropy, CE, NLL, categorical cross entropy, categorical crossentropy, sparse "
    "categorical crossentropy, softmax cross entropy with integer labels": "lossopt.losses."
    "softmax_cross_entropy, from logits, of class numbers or of distributions; of a large "
    "vocabulary lossopt.fused.linear_softmax_cross_entropy",
    "BCE, BCE with logits, binary cross entropy, binary crossentropy, binary cross entropy "
    "with logits, sigmoid binary cross entropy, log loss, logistic, soft margin, multilabel "
    "soft margin, multi-label": "lossopt.losses.sigmoid_cross_entropy, of logits",
    "pos_weight": "weights of lossopt.mean that are pos_weight where the label is 1 "
    "(docs/recipes.md#class-weights-and-pos_weight)",
    "label smoothing, smooth labels": "lossopt.losses.softmax_cross_entropy(label_smoothing=)",
    "ignore index": "lossopt.losses.softmax_cross_entropy(ignore_index=), and weight 0 in "
    "lossopt.mean (docs/losses.md#labels-to-ignore)",
    "binary focal crossentropy": "lossopt.losses.sigmoid_focal",
    "poly loss cross entropy": "lossopt.losses.poly",
    "multi margin, categorical hinge": "lossopt.losses.multiclass_hinge",
    "IoU, Jaccard": "lossopt.losses.tversky(alpha=1, beta=1)",
    "soft dice, binary dice": "lossopt.losses.dice",
    "multiclass dice, generalized dice": "lossopt.losses.softmax_dice",
    "CRPS": "lossopt.losses.gaussian_crps, or lossopt.losses.ensemble_crps(fair=) of members",
    "distillation": "lossopt.losses.kl_divergence (docs/fused.md#distillation)",
    "RankNet": "lossopt.losses.pairwise_logistic",
    "ListNet, ranking softmax": "lossopt.losses.list_softmax",
    "Plackett-Luce": "lossopt.losses.list_mle",
    "LambdaMART, LambdaLoss": "lossopt.losses.lambda_rank",
    "MRR": "lossopt.losses.reciprocal_rank",
    "AP, mAP": "lossopt.losses.average_precision",
    "NDCG@k": "lossopt.losses.ndcg(top=)",
    "triplet margin": "lossopt.losses.triplet",
    "multiple negatives ranking, in-batch negatives": "lossopt.losses.info_nce",
    "SigLIP": "lossopt.losses.sigmoid_pairs; of a large batch lossopt.fused.sigmoid_pairs",
    "SupCon": "lossopt.losses.supervised_contrastive",
    "PPO, PPO clip": "lossopt.losses.clipped_surrogate and lossopt.losses.value_clipped",
    "REINFORCE, A2C": "lossopt.losses.policy_gradient",
    "GRPO": "lossopt.losses.group_relative (docs/recipes.md#a-step-of-grpo-and-its-three-averages)",
    "KL penalty, k1, k2, k3": "lossopt.losses.sampled_kl(estimator=)",
    "DPO": "lossopt.losses.direct_preference",
    "IPO": "lossopt.losses.identity_preference",
    "CTC": "optax.losses.ctc_loss",
}
