/* A few threads for the length of one call: no pool, so nothing to fork, leak or shut down. */
#ifndef EDIM_THREADS_H
#define EDIM_THREADS_H

#include <stdint.h>

enum { EDIM_MOST_THREADS = 64 };

typedef void EdimTask(void *argument, int32_t thread);

typedef struct {
    EdimTask *task;
    void *argument;
    int32_t thread;
} EdimThread;

#if defined(_WIN32)

#include <windows.h>
typedef volatile LONG64 EdimCounter;
static int64_t edim_count(EdimCounter *counter) { return InterlockedIncrement64(counter) - 1; }
typedef HANDLE EdimHandle;
static DWORD WINAPI edim_enter(LPVOID argument) {
    EdimThread *thread = argument;
    thread->task(thread->argument, thread->thread);
    return 0;
}
static int edim_start(EdimHandle *handle, EdimThread *thread) {
    *handle = CreateThread(0, 0, edim_enter, thread, 0, 0);
    return *handle != 0;
}
static void edim_join(EdimHandle handle) {
    WaitForSingleObject(handle, INFINITE);
    CloseHandle(handle);
}

#else

#include <pthread.h>
typedef int64_t EdimCounter;
static int64_t edim_count(EdimCounter *counter) {
    return __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
}
typedef pthread_t EdimHandle;
static void *edim_enter(void *argument) {
    EdimThread *thread = argument;
    thread->task(thread->argument, thread->thread);
    return 0;
}
static int edim_start(EdimHandle *handle, EdimThread *thread) {
    return pthread_create(handle, 0, edim_enter, thread) == 0;
}
static void edim_join(EdimHandle handle) { pthread_join(handle, 0); }

#endif

/* Run `task` on this thread and n - 1 others. A thread that cannot be started is done without: the
 * tasks share their work out among whoever runs. */
static void edim_run_threads(int32_t n, EdimTask *task, void *argument) {
    EdimThread threads[EDIM_MOST_THREADS];
    EdimHandle handles[EDIM_MOST_THREADS];
    int32_t started = 0;
    if (n > EDIM_MOST_THREADS) n = EDIM_MOST_THREADS;
    for (int32_t i = 1; i < n; i++) {
        const EdimThread thread = {task, argument, i};
        threads[i] = thread;
        if (!edim_start(&handles[i], &threads[i])) break;
        started = i;
    }
    task(argument, 0);
    for (int32_t i = 1; i <= started; i++) edim_join(handles[i]);
}

#endif
