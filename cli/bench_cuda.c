#include "cli/bench_cuda.h"

#include "cli/progress.h"
#include "lm/error.h"

#include <cuda_runtime_api.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_REPS = 101 };

static const double patience = 5;   /* seconds; a repetition that takes longer is the only one */
static const double gigabyte = 1e9; /* as bandwidths are told */

/* The process has one stream, on which everything runs, and the events between which time is taken. */
static struct {
    cudaStream_t stream;
    cudaEvent_t before[MAX_REPS], after[MAX_REPS];
} cuda;

static bool cuda_ok(cudaError_t error, const char *what)
{
    return error == cudaSuccess ? true
                                : lm_fail("%s: %s (%s)", what, cudaGetErrorName(error), cudaGetErrorString(error));
}

/* ---- Memory ------------------------------------------------------------------------------------------------------ */

static void *take(size_t bytes)
{
    void *p = NULL;
    size_t free_bytes = 0, all = 0;
    const cudaError_t error = cudaMalloc(&p, bytes > 0 ? bytes : 1);
    if (error == cudaSuccess) {
        (void)cuda_ok(cudaMemsetAsync(p, 0, bytes, cuda.stream), "clearing");
        return p;
    }
    (void)cudaGetLastError(); /* it is told here */
    if (error == cudaErrorMemoryAllocation && cudaMemGetInfo(&free_bytes, &all) == cudaSuccess)
        (void)lm_fail("out of memory: %.2f GB more than the GPU's %.2f GB, of which %.2f GB are free",
                      (double)bytes / gigabyte, (double)all / gigabyte, (double)free_bytes / gigabyte);
    else
        (void)cuda_ok(error, "cudaMalloc");
    return NULL;
}

static void release(void *p)
{
    (void)cudaFree(p);
}

static bool fill(void *p, nsa_dtype dtype, int64_t count, const bench_random *random)
{
    return cuda_ok((cudaError_t)bench_launch_fill(p, dtype, count, random, cuda.stream), "random numbers");
}

static bool copy(void *to, const void *from, size_t bytes)
{
    return cuda_ok(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, cuda.stream), "copying") &&
           cuda_ok(cudaStreamSynchronize(cuda.stream), "copying");
}

/* ---- Time -------------------------------------------------------------------------------------------------------- */

static bool finish(const char *what)
{
    return cuda_ok(cudaStreamSynchronize(cuda.stream), what);
}

/* Runs n times, one behind the other; the host waits for none but the last. */
static bool time_reps(void *self, bench_step *prepare, bench_step *run, int n, float *ms)
{
    for (int i = 0; i < n; i++) {
        if (prepare != NULL && !prepare(self))
            return false;
        LM_TRY(cuda_ok(cudaEventRecord(cuda.before[i], cuda.stream), "timing"));
        if (!run(self))
            return false;
        LM_TRY(cuda_ok(cudaEventRecord(cuda.after[i], cuda.stream), "timing"));
    }
    LM_TRY(finish("a kernel that was measured"));
    for (int i = 0; i < n; i++)
        LM_TRY(cuda_ok(cudaEventElapsedTime(&ms[i], cuda.before[i], cuda.after[i]), "timing"));
    return true;
}

static int ascending(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Once for each set of inputs to warm up, then as often as the effort says. */
static bool repeat(void *self, bench_step *prepare, bench_step *run, const bench_effort *effort, bench_time *time)
{
    float ms[MAX_REPS];
    for (int i = 0; i < 2; i++) {
        LM_TRY(time_reps(self, prepare, run, 1, ms));
        if (1e-3 * (double)ms[0] > patience) {
            *time = (bench_time){(double)ms[0], 1};
            return true;
        }
    }
    const double wanted = 1e3 * effort->seconds / (double)ms[0];
    int n = wanted < MAX_REPS ? (int)wanted : MAX_REPS;
    n = n < effort->min_reps ? effort->min_reps : n;
    LM_TRY(time_reps(self, prepare, run, n, ms));
    qsort(ms, (size_t)n, sizeof ms[0], ascending);
    *time = (bench_time){0.5 * ((double)ms[(n - 1) / 2] + (double)ms[n / 2]), n};
    return true;
}

/* ---- Graphs ------------------------------------------------------------------------------------------------------ */

static bool record(void *self, bench_step *step, void **graph)
{
    cudaGraph_t captured = NULL;
    cudaGraphExec_t executable = NULL;
    LM_TRY(cuda_ok(cudaStreamBeginCapture(cuda.stream, cudaStreamCaptureModeThreadLocal), "capturing"));
    const bool stepped = step(self);
    const cudaError_t ended = cudaStreamEndCapture(cuda.stream, &captured); /* in any case */
    const bool made = stepped && cuda_ok(ended, "capturing") &&
                      cuda_ok(cudaGraphInstantiate(&executable, captured, 0), "a graph") &&
                      cuda_ok(cudaGraphUpload(executable, cuda.stream), "a graph");
    if (captured != NULL)
        (void)cudaGraphDestroy(captured);
    *graph = executable;
    return made;
}

static bool launch(void *graph)
{
    return cuda_ok(cudaGraphLaunch(graph, cuda.stream), "a graph");
}

static void forget(void *graph)
{
    if (graph != NULL)
        (void)cudaGraphExecDestroy(graph);
}

/* ---- Ceilings ---------------------------------------------------------------------------------------------------- */

static const bench_effort ceiling_effort = {0.3, 10};

typedef struct copy_run {
    void *from, *to;
    size_t bytes;
} copy_run;

static bool run_copy(void *self)
{
    const copy_run *c = self;
    return cuda_ok(cudaMemcpyAsync(c->to, c->from, c->bytes, cudaMemcpyDeviceToDevice, cuda.stream), "copying");
}

static bool measure_copy(bench_gpu *gpu)
{
    copy_run c = {.bytes = (size_t)1 << 30};
    bench_time time;
    c.from = take(c.bytes);
    c.to = take(c.bytes);
    const bool measured = c.from != NULL && c.to != NULL && repeat(&c, NULL, run_copy, &ceiling_effort, &time);
    if (measured)
        gpu->copy_gbs = 2 * (double)c.bytes / (1e-3 * time.ms) / gigabyte;
    release(c.from);
    release(c.to);
    return measured;
}

typedef struct peak_run {
    int major, minor, n_multiprocessors;
    void *sink;
    double flop;
} peak_run;

static bool run_peak(void *self)
{
    peak_run *p = self;
    return cuda_ok(
        (cudaError_t)bench_launch_peak(p->major, p->minor, p->n_multiprocessors, p->sink, &p->flop, cuda.stream),
        "matrix products");
}

static bool measure_peak(bench_gpu *gpu, const struct cudaDeviceProp *device)
{
    peak_run p = {device->major, device->minor, device->multiProcessorCount, take(sizeof(float)), 0};
    bench_time time;
    const bool measured =
        p.sink != NULL && run_peak(&p) && (p.flop == 0 || repeat(&p, NULL, run_peak, &ceiling_effort, &time));
    if (measured && p.flop > 0)
        gpu->peak_gflops = p.flop / (1e6 * time.ms);
    release(p.sink);
    return measured;
}

/* ------------------------------------------------------------------------------------------------------------------ */

/* "580.95.05", as the kernel's module says, or "unknown". */
static void driver_version(char *out, size_t size)
{
    char line[256];
    snprintf(out, size, "unknown");
    FILE *file = fopen("/proc/driver/nvidia/version", "r");
    if (file == NULL)
        return;
    if (fgets(line, sizeof line, file) != NULL)
        for (char *save = NULL, *word = strtok_r(line, " \t\n", &save); word != NULL;
             word = strtok_r(NULL, " \t\n", &save))
            if (strspn(word, "0123456789.") == strlen(word) && strchr(word, '.') != NULL) {
                snprintf(out, size, "%s", word);
                break;
            }
    fclose(file);
}

bool bench_cuda_open(bench_gpu *gpu, bench_device *device)
{
    struct cudaDeviceProp properties;
    int version = 0;
    LM_TRY(cuda_ok(cudaSetDevice(0), "CUDA device 0"));
    LM_TRY(cuda_ok(cudaGetDeviceProperties(&properties, 0), "CUDA device 0"));
    LM_TRY(cuda_ok(cudaDriverGetVersion(&version), "CUDA's version"));
    LM_TRY(cuda_ok(cudaStreamCreateWithFlags(&cuda.stream, cudaStreamNonBlocking), "a stream"));
    for (int i = 0; i < MAX_REPS; i++)
        LM_TRY(cuda_ok(cudaEventCreate(&cuda.before[i]), "an event") &&
               cuda_ok(cudaEventCreate(&cuda.after[i]), "an event"));
    *gpu = (bench_gpu){.peak_gflops = 0};
    snprintf(gpu->name, sizeof gpu->name, "%.*s", (int)strcspn(properties.name, "\"\\"), properties.name);
    snprintf(gpu->cuda, sizeof gpu->cuda, "%d.%d", version / 1000, version % 1000 / 10);
    driver_version(gpu->driver, sizeof gpu->driver);
    *device = (bench_device){.n_sets = 2,
                             .page_size = 256,
                             .stream = cuda.stream,
                             .take = take,
                             .release = release,
                             .fill = fill,
                             .copy = copy,
                             .repeat = repeat,
                             .record = record,
                             .launch = launch,
                             .forget = forget};
    return measure_copy(gpu) && measure_peak(gpu, &properties);
}
