/* Threads that wait between calls. Tasks are dealt in any order; each writes to places of its own. Calls from several
   threads take turns. */

#include <pthread.h>
#include <stdatomic.h>

typedef void Task(void *context, long number, long thread);

static struct {
    pthread_mutex_t lock, one_call;
    pthread_cond_t begin, end;
    int started, wanted, busy, watched;
    unsigned long round;
    Task *task;
    void *context;
    long tasks;
    atomic_long next;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .one_call = PTHREAD_MUTEX_INITIALIZER,
          .begin = PTHREAD_COND_INITIALIZER, .end = PTHREAD_COND_INITIALIZER};

static void take_tasks(long thread)
{
    for (long number; (number = atomic_fetch_add(&pool.next, 1)) < pool.tasks;)
        pool.task(pool.context, number, thread);
}

static void *work(void *argument)
{
    long thread = (long)(intptr_t)argument;
    unsigned long seen = 0;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        while (pool.round == seen)
            pthread_cond_wait(&pool.begin, &pool.lock);
        seen = pool.round;
        if (thread >= pool.wanted)
            continue;
        pthread_mutex_unlock(&pool.lock);
        take_tasks(thread);
        pthread_mutex_lock(&pool.lock);
        if (--pool.busy == 0)
            pthread_cond_signal(&pool.end);
    }
    return 0;
}

/* A fork waits for the call under way. The child has none of the workers, but the conditions would still wait for them:
   it begins anew. */
static void before_fork(void)
{
    pthread_mutex_lock(&pool.one_call);
    pthread_mutex_lock(&pool.lock);
}

static void after_fork(void)
{
    pthread_mutex_unlock(&pool.lock);
    pthread_mutex_unlock(&pool.one_call);
}

static void after_fork_in_child(void)
{
    pool.started = 0;
    pthread_cond_init(&pool.begin, 0);
    pthread_cond_init(&pool.end, 0);
    pthread_mutex_init(&pool.lock, 0);
    pthread_mutex_init(&pool.one_call, 0);
}

/* Start what is missing of `threads` - 1 workers; return how many threads there are. */
static int complete_pool(int threads)
{
    if (!pool.watched)
        pool.watched = pthread_atfork(before_fork, after_fork, after_fork_in_child) == 0;
    while (pool.started < threads - 1) {
        pthread_t thread;
        if (pthread_create(&thread, 0, work, (void *)(intptr_t)(pool.started + 1)))
            break;
        pthread_detach(thread);
        pool.started++;
    }
    return pool.started + 1 < threads ? pool.started + 1 : threads;
}

static void ml2hpc_parallel(int threads, long tasks, Task *task, void *context)
{
    if (threads <= 1) {
        for (long number = 0; number < tasks; number++)
            task(context, number, 0);
        return;
    }
    pthread_mutex_lock(&pool.one_call);
    pthread_mutex_lock(&pool.lock);
    threads = complete_pool(threads);
    pool.task = task;
    pool.context = context;
    pool.tasks = tasks;
    atomic_store(&pool.next, 0);
    pool.wanted = threads;
    pool.busy = threads - 1;
    pool.round++;
    pthread_cond_broadcast(&pool.begin);
    pthread_mutex_unlock(&pool.lock);
    take_tasks(0);
    pthread_mutex_lock(&pool.lock);
    while (pool.busy > 0)
        pthread_cond_wait(&pool.end, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
    pthread_mutex_unlock(&pool.one_call);
}
