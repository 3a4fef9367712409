"""Lower precisions: fp16 and int8, calibrated on images and judged before they are written."""
