"""The benchmark: its cases, counters of the software GPU, times of hardware, table and chart."""
