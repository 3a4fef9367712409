"""Time an image and frames per second: ``python benchmarks/fps.py --model icnet``."""

from benchmarks.fps_command import main

if __name__ == "__main__":
    main()
