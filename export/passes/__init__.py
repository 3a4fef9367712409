"""Rewrites of a graph, one a file, each exact or with a stated bound.

On the symbol: ``prune_heads``, ``cut_at_logits``. On the ONNX model: ``fold_batch_norm``,
``image_pooling_bias``, ``factor_pyramid``, ``commute_resize``, ``fold_normalisation``,
``mask_head``; ``sample_deformable`` where opset 17 is asked for.
"""
