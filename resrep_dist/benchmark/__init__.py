"""Benchmarks, always of several things in turn. Results are sections of `benchmark.json`, with units in the keys."""

from resrep_dist.benchmark.data import benchmark_data as benchmark_data
from resrep_dist.benchmark.data import print_data_benchmark as print_data_benchmark
from resrep_dist.benchmark.files import write_benchmark as write_benchmark
from resrep_dist.benchmark.latency import benchmark_latency as benchmark_latency
from resrep_dist.benchmark.latency import print_latency_benchmark as print_latency_benchmark
from resrep_dist.benchmark.plan import plan as plan
from resrep_dist.benchmark.plan import print_plan as print_plan
from resrep_dist.benchmark.plan import read_steps as read_steps
from resrep_dist.benchmark.replay import benchmark_replay as benchmark_replay
from resrep_dist.benchmark.replay import print_replay_benchmark as print_replay_benchmark
from resrep_dist.benchmark.steps import ARMS as ARMS
from resrep_dist.benchmark.steps import OTHER_ARMS as OTHER_ARMS
from resrep_dist.benchmark.steps import benchmark_steps as benchmark_steps
from resrep_dist.benchmark.steps import print_steps_benchmark as print_steps_benchmark
from resrep_dist.benchmark.steps import steps_sections as steps_sections
